use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>())
            .prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip), port)),
        (any::<[u8; 16]>(), any::<u16>())
            .prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip), port)),
    ]
}

fn extent() -> impl Strategy<Value = Extent> {
    any::<(u64, u64, u64)>().prop_map(|(node, generation, upto)| Extent { node, generation, upto })
}

fn delta() -> impl Strategy<Value = Delta> {
    let entry = (1..50u64, "[a-z0-9:-]{0,20}", proptest::option::of(vec(any::<u8>(), 0..40)));
    (any::<u64>(), any::<u64>(), 0..1000u64, vec(entry, 0..8), 0..20u64).prop_map(
        |(node, generation, base, raw, slack)| {
            let mut upto = base;
            let entries = raw
                .into_iter()
                .map(|(step, key, body)| {
                    upto += step;
                    DeltaEntry { key: key.into(), seq: upto, body: body.map(Arc::from) }
                })
                .collect();
            Delta { node, generation, base, upto: upto + slack, gc: base, entries }
        },
    )
}

fn any_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        vec(any::<u8>(), 0..100).prop_map(Frame::Membership),
        vec((any::<(u64, u64)>(), address()), 0..5).prop_map(|list| Frame::Addresses(
            list.into_iter()
                .map(|((node, generation), address)| Located { node, generation, address })
                .collect()
        )),
        delta().prop_map(Frame::Delta),
        extent().prop_map(Frame::Have),
        any::<[u8; 16]>().prop_map(Frame::Challenge),
        any::<[u8; 16]>().prop_map(Frame::Echo),
        any::<(u64, u32, bool)>().prop_map(|(node, epoch, left)| Frame::Gone { node, epoch, left }),
        any::<(u64, u32)>().prop_map(|(node, epoch)| Frame::Confirm { node, epoch }),
        any::<(u64, u32, bool)>().prop_map(|(node, epoch, refused)| Frame::Verdict {
            node,
            epoch,
            refused
        }),
        any::<(u32, u16)>()
            .prop_map(|(epoch, incarnation)| Frame::Suspected { epoch, incarnation }),
        any::<(u64, u32, u16)>().prop_map(|(node, epoch, incarnation)| Frame::Accused {
            node,
            epoch,
            incarnation
        }),
        (any::<Option<u64>>(), address())
            .prop_map(|(holder, address)| Frame::NotThere { address, holder }),
        (any::<(u32, u16, u64)>(), address()).prop_map(
            |((epoch, incarnation, generation), address)| {
                Frame::Hello(Hello { epoch, incarnation, generation, address })
            }
        ),
        Just(Frame::Join),
        any::<u64>().prop_map(Frame::Compare),
        Just(Frame::Equal),
        Just(Frame::Ping),
        vec(any::<(u64, u32, u16, bool)>(), 0..5).prop_map(|list| Frame::Members(
            list.into_iter()
                .map(|(node, epoch, incarnation, down)| Membered { node, epoch, incarnation, down })
                .collect()
        )),
        vec(extent(), 0..5).prop_map(Frame::Digest),
        vec(extent(), 0..5).prop_map(Frame::Wants),
    ]
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(frames in vec(any_frame(), 0..8)) {
        let mut plain = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut plain));
        prop_assert_eq!(Frame::decode_all(&plain).unwrap(), frames.clone());
        prop_assert_eq!(Frame::decode_all(&encode_compressed(&frames)).unwrap(), frames);
    }

    #[test]
    fn a_delta_is_never_larger_than_it_says(delta in delta()) {
        let mut out = Vec::new();
        let max = delta.encoded_len_max();
        Frame::Delta(delta).encode(&mut out);
        prop_assert!(out.len() <= max);
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Frame::decode_all(&bytes);
    }

    #[test]
    fn mutated_messages_do_not_panic(
        frames in vec(any_frame(), 1..5),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        for mut bytes in [encode_compressed(&frames), { let mut b = Vec::new(); frames.iter().for_each(|f| f.encode(&mut b)); b }] {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Frame::decode_all(&bytes);
            let _ = Frame::decode_all(&bytes[..cut.index(bytes.len())]);
        }
    }

    #[test]
    fn unknown_frames_are_skipped(frames in vec(any_frame(), 1..4), kind in 100..200u8, content in vec(any::<u8>(), 0..50)) {
        let mut bytes = Vec::new();
        frame(&mut bytes, kind, |out| out.extend_from_slice(&content));
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        frame(&mut bytes, kind, |_| {});
        prop_assert_eq!(Frame::decode_all(&bytes).unwrap(), frames);
    }
}

#[test]
fn a_small_frame_cannot_become_a_huge_one() {
    let zeros = vec![0u8; INFLATED_MAX + 1];
    let mut bytes = Vec::new();
    frame(&mut bytes, COMPRESSED, |out| deflate(&zeros, out));
    assert!(bytes.len() < INFLATED_MAX / 100);
    assert_eq!(Frame::decode_all(&bytes), Err(Malformed));
}

#[test]
fn a_delta_out_of_order_is_refused() {
    let entry = |seq| DeltaEntry { key: "k".into(), seq, body: None };
    for (base, upto, seqs) in
        [(0, 5, vec![2, 1]), (3, 5, vec![3]), (0, 5, vec![6]), (0, 5, vec![2, 2])]
    {
        let delta = Delta {
            node: 1,
            generation: 1,
            base,
            upto,
            gc: 0,
            entries: seqs.into_iter().map(entry).collect(),
        };
        let mut bytes = Vec::new();
        Frame::Delta(delta).encode(&mut bytes);
        assert_eq!(Frame::decode_all(&bytes), Err(Malformed));
    }
}
