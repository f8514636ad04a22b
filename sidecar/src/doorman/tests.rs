//! A real gRPC client against the service, whose leases are those of a real core: a host that is alone.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::UNIX_EPOCH;

use evenkeel_config::{Environment, parse};
use evenkeel_ratelimit::AskError;
use futures_util::stream;
use prost::Message as _;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1 as reflection;

use super::proto::capacity_client::CapacityClient;
use super::*;
use crate::quotas::alone::alone;

const RESOURCES: &str = "ratelimit: {resources: [
    {match: db, capacity: 500, per: 1s},
    {match: 'minute.*', capacity: 600, per: 1m, safe: 60, lease: 30s, refresh: 10s, learning: 0s, algorithm: proportional_share},
    {match: jobs, capacity: 8, safe: unlimited, algorithm: static},
    {match: 'any*', capacity: 1, safe: 0}]}";

/// What a test talks to.
struct Served {
    channel: Channel,
    address: SocketAddr,
    /// How often the owner was asked.
    asked: Rc<AtomicUsize>,
    metrics: prometheus::Registry,
    /// Ends the owner when it is dropped.
    owner: tokio::task::JoinHandle<()>,
}

impl Served {
    fn client(&self) -> CapacityClient<Channel> {
        CapacityClient::new(self.channel.clone())
    }
}

fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Served) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let settings = parse(RESOURCES, "t.yaml", &Environment::named("a")).unwrap().settings;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Rc::new(AtomicUsize::new(0));
        let (quotas, owner) = alone(&settings.ratelimit, Rc::clone(&asked));
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        let metrics = prometheus::Registry::new();
        let counters = PlaceCounters::registered(&prometheus::Registry::new()).unwrap();
        let doorman = Doorman::new(listener, quotas, settings, &metrics, &counters).unwrap();
        let server = tokio::task::spawn_local(doorman.serve());
        let to = Endpoint::from_shared(format!("http://{address}")).unwrap();
        test(Served { channel: to.connect().await.unwrap(), address, asked, metrics, owner }).await;
        assert!(!server.is_finished(), "it serves until it is dropped");
    });
}

fn wants(resource: &[u8], wants: f64) -> proto::ResourceRequest {
    proto::ResourceRequest {
        resource_id: Some(resource.to_vec()),
        priority: Some(0),
        has: None,
        wants: Some(wants),
    }
}

fn asks(client: &[u8], resource: Vec<proto::ResourceRequest>) -> proto::GetCapacityRequest {
    proto::GetCapacityRequest { client_id: Some(client.to_vec()), resource }
}

fn server_asks(
    server: &[u8],
    resource: &[u8],
    bands: &[(i64, i64, f64)],
) -> proto::GetServerCapacityRequest {
    let band = |(priority, num_clients, wants): &(i64, i64, f64)| proto::PriorityBandAggregate {
        priority: Some(*priority),
        num_clients: Some(*num_clients),
        wants: Some(*wants),
    };
    proto::GetServerCapacityRequest {
        server_id: Some(server.to_vec()),
        resource: vec![proto::ServerCapacityResourceRequest {
            resource_id: Some(resource.to_vec()),
            has: None,
            wants: bands.iter().map(band).collect(),
        }],
    }
}

/// The one lease of an answer.
async fn leased(
    client: &mut CapacityClient<Channel>,
    request: proto::GetCapacityRequest,
) -> proto::Lease {
    let answer = client.get_capacity(request).await.unwrap().into_inner();
    assert_eq!((answer.response.len(), answer.mastership), (1, None));
    answer.response[0].gets.unwrap()
}

#[test]
fn a_client_gets_a_lease_refreshes_it_and_gives_it_back() {
    with_server(|served| async move {
        let mut client = served.client();
        let unix = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let before = unix();
        let first = leased(&mut client, asks(b"a", vec![wants(b"db", 10.0)])).await;
        assert_eq!((first.capacity, first.refresh_interval), (Some(10.0), Some(5)));
        let expiry = first.expiry_time.unwrap();
        assert!((before + 20..=unix() + 20).contains(&expiry), "{expiry} after {before}");

        // What is left, for one who wants more than there is.
        let greedy = leased(&mut client, asks(b"b", vec![wants(b"db", 1e6)])).await;
        let second = greedy.capacity.unwrap();
        assert!((400.0..=490.0).contains(&second), "{second}");

        // Refreshed with less: the other gets what became free.
        let has = Some(proto::Lease { capacity: Some(1.0), ..first });
        let less = proto::ResourceRequest { has, ..wants(b"db", 1.0) };
        assert_eq!(leased(&mut client, asks(b"a", vec![less])).await.capacity, Some(1.0));
        let more = proto::ResourceRequest { has: Some(greedy), ..wants(b"db", 1e6) };
        let third = leased(&mut client, asks(b"b", vec![more])).await.capacity.unwrap();
        assert!(third > second && third <= 499.0, "{third} after {second}");

        let release = |client: &[u8]| proto::ReleaseCapacityRequest {
            client_id: Some(client.to_vec()),
            resource_id: vec![b"db".to_vec(), b"never held".to_vec()],
        };
        let released = client.release_capacity(release(b"b")).await.unwrap().into_inner();
        assert_eq!(released.mastership, None);
        let fourth = leased(&mut client, asks(b"c", vec![wants(b"db", 400.0)])).await;
        assert_eq!(fourth.capacity, Some(400.0), "what was given back is free at once");
    });
}

#[test]
fn capacities_are_for_each_second_and_safe_ones_as_configured() {
    with_server(|served| async move {
        let mut client = served.client();
        let request = asks(
            b"a",
            vec![
                wants(b"minute.a", 5.0),
                wants(b"minute.b", 1e3),
                wants(b"jobs", 99.0),
                wants(b"any", 0.0),
            ],
        );
        let answer = client.get_capacity(request).await.unwrap().into_inner();
        let told: Vec<_> = answer
            .response
            .iter()
            .map(|r| {
                let gets = r.gets.unwrap();
                let id = String::from_utf8(r.resource_id.clone().unwrap()).unwrap();
                (
                    id,
                    gets.capacity.unwrap(),
                    gets.refresh_interval.unwrap(),
                    r.safe_capacity.unwrap(),
                )
            })
            .collect();
        assert_eq!(told[0], ("minute.a".to_owned(), 5.0, 10, 1.0));
        let (_, greedy, ..) = told[1];
        assert!((9.0..=10.0).contains(&greedy), "600 a minute are 10 a second: {greedy}");
        assert_eq!(told[2], ("jobs".to_owned(), 8.0, 5, -1.0));
        assert_eq!(told[3], ("any".to_owned(), 0.0, 5, 0.0));
        // 10¹² units, counted by the minute, are less than 10¹² a second.
        let absurd = client.get_capacity(asks(b"a", vec![wants(b"minute.a", 1e12)])).await;
        assert_eq!(absurd.unwrap_err().code(), Code::InvalidArgument);
    });
}

#[test]
fn a_request_that_lacks_something_is_refused_by_the_name_of_the_field() {
    with_server(|served| async move {
        let mut client = served.client();
        let lease =
            proto::Lease { expiry_time: Some(1), refresh_interval: Some(1), capacity: Some(1.0) };
        let good = || proto::ResourceRequest { has: Some(lease), ..wants(b"db", 1.0) };
        let with = |change: &dyn Fn(&mut proto::ResourceRequest)| {
            let mut bad = good();
            change(&mut bad);
            asks(b"a", vec![wants(b"jobs", 1.0), bad])
        };
        let without_client = proto::GetCapacityRequest { client_id: None, resource: vec![good()] };
        for (request, expected) in [
            (without_client, "client_id is missing"),
            (asks(b"", vec![good()]), "client_id is empty"),
            (asks(&[b'x'; 257], vec![good()]), "client_id is longer than 256 bytes"),
            (with(&|r| r.resource_id = None), "resource_id is missing"),
            (with(&|r| r.resource_id = Some(Vec::new())), "resource_id is empty"),
            (
                with(&|r| r.resource_id = Some(vec![b'a'; 257])),
                "resource_id is longer than 256 bytes: `aaa",
            ),
            (
                with(&|r| r.resource_id = Some(b"jobs".to_vec())),
                "resource `jobs` stands there twice",
            ),
            (with(&|r| r.priority = None), "resource `db`: priority is missing"),
            (with(&|r| r.wants = None), "resource `db`: wants is missing"),
            (with(&|r| r.wants = Some(f64::NAN)), "resource `db`: wants NaN: not a finite number"),
            (
                with(&|r| r.wants = Some(f64::INFINITY)),
                "resource `db`: wants inf: not a finite number",
            ),
            (with(&|r| r.wants = Some(-1.0)), "resource `db`: wants -1: below zero"),
            (with(&|r| r.wants = Some(1e13)), "resource `db`: wants 10000000000000: more than"),
            (
                with(&|r| r.has = Some(proto::Lease { capacity: None, ..lease })),
                "resource `db`: has.capacity is missing",
            ),
            (
                with(&|r| r.has = Some(proto::Lease { expiry_time: None, ..lease })),
                "resource `db`: has.expiry_time is missing",
            ),
            (
                with(&|r| r.has = Some(proto::Lease { refresh_interval: None, ..lease })),
                "resource `db`: has.refresh_interval is missing",
            ),
            (
                with(&|r| r.has = Some(proto::Lease { capacity: Some(f64::NAN), ..lease })),
                "resource `db`: has NaN: not a finite number",
            ),
        ] {
            let refused = client.get_capacity(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{expected}: {refused}");
            assert!(refused.message().starts_with(expected), "{expected}: {refused}");
        }
        let unknown = client.get_capacity(asks(b"a", vec![good(), wants(b"x\x07/y", 1.0)])).await;
        let unknown = unknown.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
        assert!(unknown.message().contains(r"resource `x\u{7}/y`"), "{unknown}");
        assert_eq!(served.asked.load(Relaxed), 0, "nothing of such a request is granted");

        let release =
            proto::ReleaseCapacityRequest { client_id: None, resource_id: vec![b"db".to_vec()] };
        let refused = client.release_capacity(release).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "client_id is missing")
        );
    });
}

#[test]
fn ids_are_bytes_and_what_is_shown_of_them_is_bounded() {
    with_server(|served| async move {
        let mut client = served.client();
        let id = b"any\xff\xfe".as_slice();
        let request = asks(b"\xff", vec![wants(id, 1.0), wants(b"db\0a/b", 2.0)]);
        let answer = client.get_capacity(request).await.unwrap().into_inner();
        assert_eq!(answer.response[0].resource_id.as_deref(), Some(id));
        assert_eq!(answer.response[1].gets.unwrap().capacity, Some(2.0), "a key of `db`");
    });
    assert_eq!(request::Shown(b"a\n\xff").to_string(), "a\\n\u{fffd}");
    assert_eq!(request::Shown(&[b'a'; 300]).to_string(), format!("{}…", "a".repeat(64)));
}

#[test]
fn a_server_asks_for_its_bands_together() {
    with_server(|served| async move {
        let mut client = served.client();
        let bands = [(0, 3, 30.0), (-5, 1, 4.0)];
        let answer =
            client.get_server_capacity(server_asks(b"s", b"minute.x", &bands)).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!(answer.mastership, None);
        let told = &answer.response[0];
        assert_eq!(told.resource_id.as_deref(), Some(b"minute.x".as_slice()));
        let capacity = told.gets.unwrap().capacity.unwrap();
        assert!((9.0..=10.0).contains(&capacity), "{capacity}");
        let algorithm = told.algorithm.clone().unwrap();
        assert_eq!(algorithm.kind(), proto::algorithm::Kind::ProportionalShare);
        assert_eq!((algorithm.lease_length, algorithm.refresh_interval), (Some(30), Some(10)));
        assert_eq!((algorithm.learning_mode_duration, told.safe_capacity), (Some(0), Some(1.0)));
        assert_eq!(served.asked.load(Relaxed), 2, "each band is a client");

        // What nobody wants is a lease too.
        let none = client.get_server_capacity(server_asks(b"t", b"db", &[])).await.unwrap();
        assert_eq!(none.into_inner().response[0].gets.unwrap().capacity, Some(0.0));

        let field = |change: &dyn Fn(&mut proto::PriorityBandAggregate)| {
            let mut request = server_asks(b"s", b"db", &[(0, 1, 1.0)]);
            change(&mut request.resource[0].wants[0]);
            request
        };
        let unnamed =
            proto::GetServerCapacityRequest { server_id: None, ..server_asks(b"s", b"db", &[]) };
        for (request, expected) in [
            (unnamed, "server_id is missing"),
            (server_asks(&[b's'; 240], b"db", &[]), "server_id is longer than 235 bytes"),
            (
                server_asks(b"s", b"db", &[(1, 1, 1.0), (1, 2, 1.0)]),
                "resource `db`: priority 1 stands there twice",
            ),
            (
                server_asks(b"s", b"db", &[(0, 0, 1.0)]),
                "resource `db`: num_clients is 0, at least 1",
            ),
            (field(&|band| band.num_clients = None), "resource `db`: num_clients is missing"),
            (field(&|band| band.priority = None), "resource `db`: priority is missing"),
            (field(&|band| band.wants = None), "resource `db`: wants is missing"),
            (server_asks(b"s", b"db", &[(0, 1, f64::NAN)]), "resource `db`: wants NaN"),
            (
                server_asks(b"s", b"db", &(0..65).map(|p| (p, 1, 0.0)).collect::<Vec<_>>()),
                "wants: 65 items, at most 64",
            ),
        ] {
            let refused = client.get_server_capacity(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{expected}: {refused}");
            assert!(refused.message().starts_with(expected), "{expected}: {refused}");
        }
    });
}

#[test]
fn any_host_is_the_master() {
    with_server(|served| async move {
        let answer =
            served.client().discovery(proto::DiscoveryRequest {}).await.unwrap().into_inner();
        assert_eq!(answer.is_master, Some(true));
        let master = answer.mastership.unwrap().master_address.unwrap();
        assert_eq!(String::from_utf8(master).unwrap(), served.address.to_string());

        // By the name by which the client came.
        let named = Endpoint::from_shared(format!("http://{}", served.address)).unwrap();
        let named = named.origin("http://doorman.example:7113".parse().unwrap());
        let mut client = CapacityClient::new(named.connect().await.unwrap());
        let answer = client.discovery(proto::DiscoveryRequest {}).await.unwrap().into_inner();
        let master = answer.mastership.unwrap().master_address.unwrap();
        assert_eq!(master, b"doorman.example:7113");
    });
}

#[test]
fn health_and_reflection_answer() {
    with_server(|served| async move {
        let mut health = HealthClient::new(served.channel.clone());
        for service in ["", "doorman.Capacity"] {
            let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
            let status = health.check(request).await.unwrap().into_inner().status();
            assert_eq!(status.as_str_name(), "SERVING", "{service}");
        }

        let channel = served.channel.clone();
        let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
        use reflection::server_reflection_request::MessageRequest;
        use reflection::server_reflection_response::MessageResponse;
        let ask = |question| reflection::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(question),
        };
        let questions = [
            MessageRequest::ListServices(String::new()),
            MessageRequest::FileContainingSymbol("doorman.Capacity".to_owned()),
        ];
        let questions = stream::iter(questions.map(ask));
        let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
        let listed = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(listed)) = listed else {
            panic!("{listed:?}")
        };
        let names: Vec<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
        assert!(
            names.contains(&"doorman.Capacity") && names.contains(&"grpc.health.v1.Health"),
            "{names:?}"
        );
        let file = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::FileDescriptorResponse(file)) = file else { panic!("{file:?}") };
        let shown: Vec<_> = file
            .file_descriptor_proto
            .iter()
            .map(|bytes| prost_types::FileDescriptorProto::decode(bytes.as_slice()).unwrap())
            .filter(|file| file.package() == "doorman")
            .collect();
        let lease = shown[0].message_type.iter().find(|message| message.name() == "Lease").unwrap();
        let required = prost_types::field_descriptor_proto::Label::Required;
        assert!(lease.field.iter().all(|field| field.label() == required), "as it is written");
    });
}

#[test]
fn what_is_too_much_is_refused() {
    with_server(|served| async move {
        let mut client = served.client();
        let many = (0..=request::RESOURCES_MAX).map(|n| wants(format!("any{n}").as_bytes(), 0.0));
        let refused = client.get_capacity(asks(b"a", many.collect())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with("resource: 1001 items, at most 1000"), "{refused}");
        // The largest that is allowed fits in the largest message.
        let most =
            (0..request::RESOURCES_MAX).map(|n| wants(format!("any{n:0>253}").as_bytes(), 0.0));
        let most = client.get_capacity(asks(&[b'a'; 256], most.collect())).await.unwrap();
        assert_eq!(most.into_inner().response.len(), request::RESOURCES_MAX);

        let large = client.get_capacity(asks(&vec![b'a'; MESSAGE_BYTES_MAX], Vec::new())).await;
        assert_eq!(large.unwrap_err().code(), Code::OutOfRange);
        served.owner.abort();
        let _ = served.owner.await;
        let gone = client.get_capacity(asks(b"a", vec![wants(b"db", 1.0)])).await.unwrap_err();
        assert_eq!(gone.code(), Code::Unavailable, "{gone}");

        let families = served.metrics.gather();
        let counted: Vec<_> = families[0]
            .get_metric()
            .iter()
            .map(|metric| {
                let labels: Vec<_> =
                    metric.get_label().iter().map(prometheus::proto::LabelPair::value).collect();
                (labels.join(" "), metric.get_counter().get_value())
            })
            .collect();
        let expected = ["INVALID_ARGUMENT", "OK", "OUT_OF_RANGE", "UNAVAILABLE"];
        let expected: Vec<_> =
            expected.iter().map(|code| (format!("{code} GetCapacity"), 1.0)).collect();
        assert_eq!(counted, expected);
    });
}

#[test]
fn what_is_not_http_2_is_closed() {
    with_server(|served| async move {
        let address = served.address;
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /doorman HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            answer
        });
        assert_eq!(answer.await.unwrap(), b"");
    });
}

#[test]
fn refusals_of_the_owner_say_what_to_do() {
    for (why, code) in [
        (AskError::UnknownResource, Code::NotFound),
        (AskError::IdTooLong, Code::InvalidArgument),
        (AskError::TooManyResources, Code::ResourceExhausted),
        (AskError::TooManyClients, Code::ResourceExhausted),
    ] {
        let status = answer::refused(b"db", why);
        assert_eq!(status.code(), code);
        assert!(status.message().starts_with("resource `db`: "), "{status}");
    }
    assert_ne!(request::band(b"s", 1), request::band(b"s", 11));
}
