//! A whole head, read on its way in.

use http::header::{CONTENT_LENGTH, VIA};
use http::{Request, Version};

use super::headers::tests::map;
use super::*;

fn received(
    method: &str,
    fields: &[(&str, &str)],
) -> (Result<ReceivedRequest, MessageError>, HeaderMap) {
    let request = Request::builder().method(method).uri("/a").version(Version::HTTP_11);
    let (mut parts, ()) = request.body(()).unwrap().into_parts();
    parts.headers = map(&[&[("host", "pay")], fields].concat());
    let found = headers::find(&parts.headers);
    (receive(&mut parts, found, None), parts.headers)
}

#[test]
fn an_ordinary_request_passes_as_it_is() {
    let fields = [("accept", "*/*"), ("content-length", "5"), ("cookie", "a"), ("cookie", "b")];
    let (received, headers) = received("POST", &fields);
    let received = received.unwrap();
    assert_eq!(received.length, BodyLength::Known(5));
    assert_eq!(received.hops, Hops::default());
    assert_eq!((received.timeout, received.grpc_timeout), (None, None));
    assert_eq!(headers, map(&[&[("host", "pay")], &fields[..]].concat()));
}

#[test]
fn what_is_for_us_is_read_and_taken_off() {
    let (received, headers) = received(
        "POST",
        &[
            ("evenkeel-timeout", "250"),
            ("grpc-timeout", "2S"),
            ("evenkeel-hops", "3"),
            ("via", "1.1 evenkeel-mesh"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
        ],
    );
    let received = received.unwrap();
    assert_eq!(received.timeout, Some(Duration::from_millis(250)));
    assert_eq!(received.grpc_timeout, Some(Duration::from_secs(2)));
    assert_eq!(received.hops.count, 3);
    assert_eq!(received.length, BodyLength::Chunked);
    let left = [("host", "pay"), ("grpc-timeout", "2S"), ("via", "1.1 evenkeel-mesh")];
    assert_eq!(headers, map(&left));
}

#[test]
fn max_forwards_counts_down_for_the_methods_that_have_it() {
    for (method, value, for_us, left) in [
        ("OPTIONS", "0", true, "0"),
        ("TRACE", "00", true, "00"),
        ("OPTIONS", "1", false, "0"),
        ("TRACE", "5", false, "4"),
        ("TRACE", "99999999999999", false, "4294967294"),
        ("OPTIONS", "-1", false, "-1"),
        ("OPTIONS", "", false, ""),
        ("GET", "0", false, "0"),
        ("GET", "7", false, "7"),
    ] {
        let request = Request::builder().method(method).header(MAX_FORWARDS, value);
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let found = headers::find(&parts.headers);
        assert_eq!(may_go_on(&mut parts, found), !for_us, "{method} {value}");
        assert_eq!(parts.headers[MAX_FORWARDS], left, "{method} {value}");
    }
}

fn answer(status: u16, fields: &[(&str, &str)]) -> Result<HeaderMap, MessageError> {
    let mut response = Response::builder().status(status).body(()).unwrap();
    *response.headers_mut() = map(fields);
    answered(&mut response).map(|_| response.into_parts().0.headers)
}

#[test]
fn a_response_that_could_be_cut_or_believed_whole_is_not_passed_on() {
    let chunked = ("transfer-encoding", "chunked");
    let mended = answer(200, &[("content-length", "5"), chunked]).unwrap();
    assert!(mended.is_empty());
    assert_eq!(answer(200, &[("content-length", "5"), ("content-length", "5")]).unwrap().len(), 1);
    for bad in [
        &[("transfer-encoding", "gzip, chunked")][..],
        &[("transfer-encoding", "identity")],
        &[chunked, chunked],
        &[("content-length", "5"), ("content-length", "6")],
    ] {
        assert!(answer(200, bad).is_err(), "{bad:?}");
    }
    assert!(answer(101, &[("upgrade", "websocket")]).is_err());
}

#[test]
fn only_a_response_that_may_name_a_length_does() {
    let length = [("content-length", "5")];
    assert!(!answer(204, &length).unwrap().contains_key(CONTENT_LENGTH));
    assert!(answer(304, &length).unwrap().contains_key(CONTENT_LENGTH));
    assert!(answer(200, &length).unwrap().contains_key(CONTENT_LENGTH));
    assert!(!answer(200, &length).unwrap().contains_key(VIA));
}
