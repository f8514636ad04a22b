use hickory_proto::op::{Metadata, Query};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::catalog::Policies;
use crate::sample::catalog;

const UDP: Transport = Transport::Udp { most: UDP_MAX };
const UDP_HERE: Transport = Transport::Udp { most: UDP_HERE_MAX };

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(1)
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 77;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask_in(catalog: &Catalog, question: &Message, transport: Transport) -> Message {
    let bytes = answer(catalog, &question.to_vec().unwrap(), transport, &mut rng()).unwrap();
    Message::from_vec(&bytes).unwrap()
}

fn ask(name: &str, kind: RecordType) -> Message {
    ask_in(&catalog(), &question(name, kind), UDP)
}

/// Makes these all there is of `payments`.
fn publish(catalog: &mut Catalog, instances: &[Instance]) {
    let instances = instances.iter().cloned().map(Arc::new).collect();
    let view =
        ServiceView { name: "payments".into(), index: 1, instances, policies: Policies::default() };
    catalog.services.insert("payments".into(), Arc::new(view));
}

fn data(records: &[Record]) -> Vec<String> {
    let mut data: Vec<String> = records.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    data
}

#[test]
fn what_a_host_has_not_heard_of_yet_may_exist() {
    let early = Catalog { partial: true, ..catalog() };
    for name in ["nothing.service.mesh.", "nothing.mesh.", "nobody.node.mesh."] {
        let answer = ask_in(&early, &question(name, RecordType::A), UDP);
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{name}");
        assert!(!answer.metadata.authoritative && answer.authorities.is_empty(), "{name}");
    }
    let answer = ask_in(&early, &question("payments.service.mesh.", RecordType::A), UDP);
    assert_eq!(data(&answer.answers), ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn table_of_questions_and_answers() {
    use RecordType::{A, AAAA, ANY, TXT};
    use ResponseCode::{NXDomain, NoError, Refused};
    for (name, kind, code, answers) in [
        // Warning counts, critical and draining do not.
        ("payments.service.mesh.", A, NoError, vec!["10.0.0.1", "10.0.0.2"]),
        ("payments.service.prod.mesh.", A, NoError, vec!["10.0.0.1", "10.0.0.2"]),
        ("PayMents.Service.MESH.", A, NoError, vec!["10.0.0.1", "10.0.0.2"]),
        ("payments.mesh.", A, NoError, vec!["10.0.0.1", "10.0.0.2"]),
        ("v2.payments.service.mesh.", A, NoError, vec!["10.0.0.1"]),
        ("v3.payments.service.mesh.", A, NXDomain, vec![]),
        ("payments.shop.service.mesh.", A, NoError, vec!["10.0.0.9"]),
        ("_payments._tcp.service.mesh.", A, NoError, vec!["10.0.0.1", "10.0.0.2"]),
        ("_payments._v2.service.mesh.", A, NoError, vec!["10.0.0.1"]),
        ("payments.service.mesh.", ANY, NoError, vec!["10.0.0.1", "10.0.0.2"]),
        ("payments.service.mesh.", AAAA, NoError, vec![]),
        ("payments.service.mesh.", TXT, NoError, vec![]),
        ("six.service.mesh.", AAAA, NoError, vec!["2001:db8::6"]),
        ("six.service.mesh.", A, NoError, vec![]),
        ("sick.service.mesh.", A, NXDomain, vec![]),
        ("inside.service.mesh.", A, NXDomain, vec![]),
        ("nothing.service.mesh.", A, NXDomain, vec![]),
        ("host-b.node.mesh.", A, NoError, vec!["10.0.0.2"]),
        ("host-b.node.prod.mesh.", A, NoError, vec!["10.0.0.2"]),
        ("host-d.node.mesh.", A, NXDomain, vec![]),
        ("0a000005.addr.prod.mesh.", A, NoError, vec!["10.0.0.5"]),
        ("0a000005.addr.mesh.", AAAA, NoError, vec![]),
        ("_payments._tcp.shop.service.mesh.", A, NoError, vec!["10.0.0.9"]),
        ("_payments._v2.shop.service.mesh.", A, NXDomain, vec![]),
        ("mesh.", A, NoError, vec![]),
        // RFC 8020: above what exists, nothing of its own.
        ("service.mesh.", A, NoError, vec![]),
        ("node.mesh.", A, NoError, vec![]),
        ("addr.mesh.", A, NoError, vec![]),
        ("prod.mesh.", A, NoError, vec![]),
        ("service.prod.mesh.", A, NoError, vec![]),
        ("NODE.PROD.mesh.", A, NoError, vec![]),
        ("shop.mesh.", A, NoError, vec![]),
        ("shop.service.mesh.", A, NoError, vec![]),
        ("shop.service.prod.mesh.", A, NoError, vec![]),
        ("_tcp.service.mesh.", A, NoError, vec![]),
        ("_tcp.shop.service.mesh.", A, NoError, vec![]),
        ("_tcp.nothing.service.mesh.", A, NXDomain, vec![]),
        ("service.other.mesh.", A, NXDomain, vec![]),
        ("other.mesh.", A, NXDomain, vec![]),
        ("x.node.mesh.", A, NXDomain, vec![]),
        ("example.com.", A, Refused, vec![]),
        (".", A, Refused, vec![]),
    ] {
        let response = ask(name, kind);
        assert_eq!(response.metadata.response_code, code, "{name} {kind}");
        assert_eq!(data(&response.answers), answers, "{name} {kind}");
        assert_eq!(response.metadata.authoritative, code != Refused, "{name} {kind}");
        let soa =
            response.authorities.iter().filter(|r| r.record_type() == RecordType::SOA).count();
        assert_eq!(soa, usize::from(answers.is_empty() && code != Refused), "{name} {kind}");
        assert!(response.answers.iter().all(|record| record.ttl == 0));
        assert!(response.metadata.recursion_desired && response.metadata.id == 77);
        assert!(!response.metadata.recursion_available && !response.metadata.truncation);
    }
}

#[test]
fn srv_names_hosts_where_it_can_and_addresses_where_not() {
    let response = ask("payments.service.mesh.", RecordType::SRV);
    assert_eq!(
        data(&response.answers),
        ["1 1 8443 host-b.node.prod.mesh.", "1 10 8443 host-a.node.prod.mesh."]
    );
    assert_eq!(data(&response.additionals), ["10.0.0.1", "10.0.0.2"]);
    let response = ask("_payments._tcp.shop.service.mesh.", RecordType::SRV);
    assert_eq!(data(&response.answers), ["1 1 8443 0a000009.addr.prod.mesh."]);
    let response = ask("payments.shop.service.mesh.", RecordType::SRV);
    assert_eq!(data(&response.answers), ["1 1 8443 0a000009.addr.prod.mesh."]);
    for additional in &response.additionals {
        let again = ask(&additional.name.to_ascii(), RecordType::A);
        assert_eq!(data(&again.answers), data(std::slice::from_ref(additional)));
    }
}

#[test]
fn each_srv_record_has_an_address_record_of_its_own() {
    let mut catalog = catalog();
    let sample = Instance::clone(&catalog.services["payments"].instances[0]);
    let of_one_host = |port| Instance {
        id: format!("payments-{port}"),
        advertise: Some(([10, 0, 0, 1], port).into()),
        ..sample.clone()
    };
    let instances: Vec<Instance> = (9300..9305).map(of_one_host).collect();
    publish(&mut catalog, &instances);
    let response = ask_in(&catalog, &question("payments.mesh.", RecordType::SRV), UDP);
    assert_eq!((response.answers.len(), response.additionals.len()), (5, 5));
    assert_eq!(data(&response.additionals), ["10.0.0.1"; 5]);
    for (srv, address) in response.answers.iter().zip(&response.additionals) {
        let RData::SRV(srv) = &srv.data else { panic!("{srv:?}") };
        assert_eq!(srv.target, address.name);
    }
}

#[test]
fn an_instance_whose_host_has_a_name_too_long_for_dns_is_named_by_its_address() {
    let mut catalog = catalog();
    let host = catalog.nodes[&1].as_ref().clone();
    let host = Arc::new(Node { name: "h".repeat(64), ..host });
    catalog.nodes.insert(1, Arc::clone(&host));
    let sample = Instance::clone(&catalog.services["payments"].instances[0]);
    publish(&mut catalog, &[Instance { node: host, ..sample }]);
    let response = ask_in(&catalog, &question("payments.mesh.", RecordType::SRV), UDP);
    assert_eq!(data(&response.answers), ["1 10 8443 0a000001.addr.prod.mesh."]);
}

#[test]
fn names_above_a_host_of_several_labels_are_there() {
    let mut catalog = catalog();
    let host = catalog.nodes[&2].as_ref().clone();
    catalog.nodes.insert(2, Arc::new(Node { name: "b.Rack.example".into(), ..host }));
    for (name, code) in [
        ("b.rack.example.node.mesh.", ResponseCode::NoError),
        ("rack.example.node.mesh.", ResponseCode::NoError),
        ("example.node.prod.mesh.", ResponseCode::NoError),
        ("ample.node.mesh.", ResponseCode::NXDomain),
        ("a.rack.example.node.mesh.", ResponseCode::NXDomain),
    ] {
        let response = ask_in(&catalog, &question(name, RecordType::A), UDP);
        assert_eq!(response.metadata.response_code, code, "{name}");
    }
}

#[test]
fn the_domain_has_its_soa_and_a_name_server_that_resolves() {
    let response = ask("mesh.", RecordType::SOA);
    assert_eq!(response.answers.len(), 1);
    let RData::SOA(soa) = &response.answers[0].data else { panic!("{response:?}") };
    assert_eq!(soa.mname.to_ascii(), "host-a.node.prod.mesh.");
    let response = ask("mesh.", RecordType::NS);
    assert_eq!(data(&response.answers), ["host-a.node.prod.mesh."]);
    assert_eq!(response.answers[0].name.to_ascii(), "mesh.");
    assert_eq!(data(&response.additionals), ["10.0.0.1"]);
    assert!(response.authorities.is_empty());
    let server = ask(&response.additionals[0].name.to_ascii(), RecordType::A);
    assert_eq!(data(&server.answers), ["10.0.0.1"]);
    assert_eq!(ask("mesh.", RecordType::ANY).answers.len(), 2);
    let below = ask("payments.service.mesh.", RecordType::NS);
    assert_eq!((below.answers.len(), below.authorities.len()), (0, 1));
}

#[test]
fn the_question_comes_back_as_it_was_written() {
    let response = ask("PayMents.sErvice.MESH.", RecordType::A);
    assert_eq!(response.queries[0].name().to_ascii(), "PayMents.sErvice.MESH.");
    assert_eq!(response.answers[0].name.to_ascii(), "PayMents.sErvice.MESH.");
}

#[test]
fn what_may_have_vanished_is_named_only_alone() {
    let mut catalog = catalog();
    let mut instances: Vec<Instance> =
        catalog.services["payments"].instances.iter().map(|i| Instance::clone(i)).collect();
    instances[0].preserved = true;
    publish(&mut catalog, &instances);
    let query = question("payments.mesh.", RecordType::A);
    assert_eq!(data(&ask_in(&catalog, &query, UDP).answers), ["10.0.0.2"]);
    publish(&mut catalog, &instances[..1]);
    assert_eq!(data(&ask_in(&catalog, &query, UDP).answers), ["10.0.0.1"]);
}

fn crowd(size: usize) -> Catalog {
    let mut catalog = catalog();
    let sample = Instance::clone(&catalog.services["payments"].instances[0]);
    let instances: Vec<Instance> = (0..size)
        .map(|i| Instance {
            id: format!("payments-{i}"),
            advertise: Some(([10, 1, (i / 250) as u8, (i % 250) as u8], 8443).into()),
            ..sample.clone()
        })
        .collect();
    publish(&mut catalog, &instances);
    catalog
}

#[test]
fn answers_fit_what_the_client_takes() {
    let catalog = crowd(300);
    for (payload, transport, limit, truncated) in [
        (None, UDP, 512, true),
        (Some(100), UDP, 512, true),
        (Some(900), UDP, 900, true),
        (Some(4096), UDP, 1232, true),
        (None, UDP_HERE, 512, true),
        (Some(4096), UDP_HERE, 4096, true),
        (Some(u16::MAX), UDP_HERE, 16384, false),
        (None, Transport::Tcp, 65535, false),
        (Some(512), Transport::Tcp, 65535, false),
    ] {
        for kind in [RecordType::A, RecordType::SRV] {
            // The names of 300 targets are longer than 16 KiB.
            let truncated = truncated || (limit == 16384 && kind == RecordType::SRV);
            let mut query = question("payments.service.mesh.", kind);
            if let Some(payload) = payload {
                let mut edns = Edns::new();
                edns.set_max_payload(payload).set_version(0);
                query.set_edns(edns);
            }
            let bytes = answer(&catalog, &query.to_vec().unwrap(), transport, &mut rng()).unwrap();
            let response = Message::from_vec(&bytes).unwrap();
            assert!(bytes.len() <= limit, "{payload:?} {transport:?} {kind}: {}", bytes.len());
            assert_eq!(response.metadata.truncation, truncated, "{payload:?} {transport:?} {kind}");
            assert_eq!(
                response.edns.is_some(),
                payload.is_some(),
                "{payload:?} {transport:?} {kind}"
            );
            assert!(response.answers.len() >= if truncated { 8 } else { 300 });
            if truncated && kind == RecordType::A {
                assert!(bytes.len() > limit * 3 / 4, "wasteful: {} of {limit}", bytes.len());
            }
        }
    }
}

#[test]
fn more_than_tcp_holds_is_cut_too() {
    let mut query = question("payments.service.mesh.", RecordType::SRV);
    query.set_edns(Edns::new());
    let bytes = answer(&crowd(3000), &query.to_vec().unwrap(), Transport::Tcp, &mut rng()).unwrap();
    assert!(bytes.len() <= 65535);
    let response = Message::from_vec(&bytes).unwrap();
    assert!(response.metadata.truncation && response.edns.is_some());
    assert!(response.answers.len() > 1000);
}

#[test]
fn answers_are_shuffled() {
    let query = question("payments.mesh.", RecordType::A).to_vec().unwrap();
    let (catalog, mut rng) = (crowd(10), rng());
    let firsts: BTreeSet<String> = (0..50)
        .map(|_| answer(&catalog, &query, UDP, &mut rng).unwrap())
        .map(|bytes| Message::from_vec(&bytes).unwrap().answers[0].data.to_string())
        .collect();
    assert!(firsts.len() > 5, "{firsts:?}");
}

#[test]
fn what_is_not_a_question_for_us_is_told_so() {
    type Change = fn(&mut Message);
    let table: [(&str, ResponseCode, Change); 7] = [
        ("zone transfer", ResponseCode::NotImp, |m| {
            _ = m.queries[0].set_query_type(RecordType::AXFR);
        }),
        ("chaos", ResponseCode::Refused, |m| {
            _ = m.queries[0].set_query_class(DNSClass::CH);
        }),
        ("update", ResponseCode::NotImp, |m| {
            m.metadata.op_code = OpCode::Update;
        }),
        ("notify", ResponseCode::NotImp, |m| {
            m.metadata.op_code = OpCode::Notify;
        }),
        ("two questions", ResponseCode::FormErr, |m| {
            m.queries.push(m.queries[0].clone());
        }),
        ("no question", ResponseCode::FormErr, |m| m.queries.clear()),
        ("a later EDNS", ResponseCode::BADVERS, |m| {
            let mut edns = Edns::new();
            edns.set_version(1);
            m.set_edns(edns);
        }),
    ];
    for (what, code, change) in table {
        let mut query = question("payments.service.mesh.", RecordType::A);
        change(&mut query);
        let response = ask_in(&catalog(), &query, UDP);
        assert_eq!(u16::from(response.metadata.response_code), u16::from(code), "{what}");
        assert!(response.answers.is_empty(), "{what}");
    }
}

#[test]
fn what_is_not_a_message_is_dropped_or_called_malformed() {
    let good = question("payments.service.mesh.", RecordType::A).to_vec().unwrap();
    assert_eq!(answer(&catalog(), &good[..11], UDP, &mut rng()), None);
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(answer(&catalog(), &response, UDP, &mut rng()), None, "answers are not answered");
    let cut = answer(&catalog(), &good[..good.len() - 3], UDP, &mut rng()).unwrap();
    let metadata: Metadata = Message::from_vec(&cut).unwrap().metadata;
    assert_eq!((metadata.id, metadata.response_code), (77, ResponseCode::FormErr));
    assert_eq!(metadata.message_type, MessageType::Response);
}

proptest! {
    #[test]
    fn random_messages_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Some(response) = answer(&catalog(), &bytes, UDP, &mut rng()) {
            prop_assert!(response.len() <= usize::from(UDP_MAX));
            prop_assert_eq!(&response[..2], &bytes[..2]);
        }
    }

    #[test]
    fn mutated_questions_do_not_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), tcp in any::<bool>()) {
        let mut bytes = question("v2.payments.service.mesh.", RecordType::SRV).to_vec().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let transport = if tcp { Transport::Tcp } else { UDP };
        if let Some(response) = answer(&catalog(), &bytes, transport, &mut rng()) {
            prop_assert!(Message::from_vec(&response).is_ok());
        }
    }
}
