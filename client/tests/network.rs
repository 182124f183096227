//! Fail-over, retries and load balance, on real sockets: which server and which proxy is asked how often when
//! one of them misbehaves, and that the right content comes all the same.

#[path = "common/scripted.rs"]
mod scripted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scripted::{Act, Getter, Object, Request, Scripted, refused};

/// Runs the lines of a table at the same time: most of them wait for timeouts.
fn all_at_once<T: Sync>(table: &[T], test: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        let test = &test;
        let running: Vec<_> = table.iter().map(|line| scope.spawn(move || test(line))).collect();
        let failed = running.into_iter().map(|line| line.join()).filter(Result::is_err).count();
        assert_eq!(failed, 0, "lines of the table failed");
    });
}

/// What can go wrong with one request, how often it is then tried on the same path, and what is said of it.
fn failures() -> Vec<(Act, usize, &'static str)> {
    vec![
        (Act::Close, 2, "error sending request"),
        (Act::HangBeforeHead, 2, "no answer for 1s"),
        (Act::HangInBody, 2, "nothing more comes for 1s"),
        (Act::Truncate, 2, "end of file before message length reached"),
        (Act::SlowHead, 2, "no answer for 1s"),
        (Act::SlowBody, 2, "slower than 1024 bytes a second"),
        (Act::EndlessHead, 2, "error sending request"),
        (Act::Status(429, ""), 2, "429"),
    ]
}

#[test]
fn a_server_that_fails_is_left_for_the_next_one() {
    let object = Object::new(1, 30_000);
    let mut table = failures();
    table.extend([
        (Act::Status(500, ""), 1, "500"),
        (Act::Status(503, "X-Squid-Error: ERR_CONNECT_FAIL 111\r\n"), 1, "503"),
        (Act::Status(404, ""), 1, "404"),
        (Act::Status(400, ""), 1, "400"),
        (Act::Status(403, ""), 1, "403"),
        (Act::Status(206, ""), 1, "206"),
        (Act::Redirect("http://127.0.0.1:1/repo/x".into()), 1, "302"),
        (Act::Wrong, 2, "hash"),
        (Act::TooShortLength, 2, "hash"),
        (Act::Instead(b"<html>log in first</html>".to_vec().into()), 2, "hash"),
        (Act::Endless(vec![0x5a; 10_000].into()), 2, "no end"),
    ]);
    all_at_once(&table, |(act, requests, _)| {
        let (bad, good) = (Scripted::new(act.clone()).having(&object), Scripted::new(Act::Serve).having(&object));
        let servers = format!("{};{}", bad.repository(), good.repository());
        let getter = Getter::new(&servers, "DIRECT", &[]);
        getter.gets(&object);
        let asked = (bad.count(), good.count());
        assert_eq!(asked, (*requests, 1), "{act:?}: requests to the bad and the good server");
        assert_eq!(getter.host(), good.repository(), "{act:?}: the next request goes to the good server");
        assert_eq!((getter.stats.failovers.get(), getter.stats.retries.get()), (1, *requests as u64 - 1), "{act:?}");
        assert_eq!(getter.unfinished(), 0, "{act:?} leaves something behind");
    });
    // Alone, it is an error that names the reason, and nothing is kept.
    all_at_once(&table, |(act, requests, reason)| {
        let bad = Scripted::new(act.clone()).having(&object);
        let getter = Getter::new(&bad.repository(), "DIRECT", &[]);
        let said = getter.refuses(&object);
        assert!(said.contains(reason) && said.contains(&object.id.path()), "{act:?}: {said}");
        assert!(said.contains("corrupt") == matches!(*reason, "hash" | "no end"), "{act:?}: {said}");
        assert_eq!(bad.count(), *requests, "{act:?}");
    });
}

#[test]
fn a_proxy_that_fails_is_left_for_the_next_one() {
    let object = Object::new(2, 30_000);
    let mut table = failures();
    // Patience is asked for by servers; there is no other one here.
    table.retain(|(act, ..)| !matches!(act, Act::Status(429, _)));
    table.extend([
        (Act::Status(503, "X-Squid-Error: ERR_CONNECT_FAIL 111\r\n"), 1, "503"),
        (Act::Status(404, "X-Squid-Error: ERR_DNS_FAIL 0\r\n"), 1, "404"),
        (Act::Status(502, "Proxy-Status: lab; error=connection_timeout\r\n"), 1, "502"),
        (Act::Status(403, ""), 1, "403"),
        (Act::Status(407, ""), 1, "407"),
        (Act::Redirect("http://127.0.0.1:1/portal".into()), 1, "302"),
    ]);
    all_at_once(&table, |(act, requests, _)| {
        for separator in ["|", ";"] {
            let (bad, good) = (Scripted::new(act.clone()).having(&object), Scripted::new(Act::Serve).having(&object));
            // In one group chance decides who is asked first: until it is the bad one.
            for round in 0.. {
                let proxies = format!("{}{separator}{}", bad.url(), good.url());
                let getter = Getter::new("http://server.invalid/repo", &proxies, &[]);
                if getter.proxy() != bad.url() {
                    assert!(separator == "|" && round < 100, "{act:?}: the first group comes first");
                    continue;
                }
                getter.gets(&object);
                assert_eq!((bad.count(), good.count()), (*requests, 1), "{act:?} {separator}");
                assert_eq!(getter.proxy(), good.url(), "{act:?} {separator}");
                assert_eq!(good.requests()[0].target, format!("http://server.invalid/repo/{}", object.id.path()));
                break;
            }
        }
    });
    all_at_once(&table, |(act, requests, reason)| {
        let bad = Scripted::new(act.clone()).having(&object);
        let getter = Getter::new("http://server.invalid/repo", &bad.url(), &[]);
        let said = getter.refuses(&object);
        assert!(said.contains(reason), "{act:?}: {said}");
        assert_eq!(bad.count(), *requests, "{act:?}");
    });
}

#[test]
fn a_server_that_fails_behind_a_proxy_is_left_without_leaving_the_proxy() {
    let object = Object::new(3, 30_000);
    let acts = [
        (Act::Status(404, ""), 1),
        (Act::Status(502, ""), 1),
        (Act::Status(503, "Proxy-Status: lab; details=fine\r\n"), 1),
        (Act::Status(429, ""), 2),
        (Act::Wrong, 2),
    ];
    all_at_once(&acts, |(act, requests)| {
        let act = act.clone();
        let script = move |request: &Request| match request.target.starts_with("http://bad.invalid/") {
            true => act.clone(),
            false => Act::Serve,
        };
        let (proxy, other) = (Scripted::with(script).having(&object), Scripted::new(Act::Serve).having(&object));
        let proxies = format!("{};{}", proxy.url(), other.url());
        let getter = Getter::new("http://bad.invalid/repo;http://good.invalid/repo", &proxies, &[]);
        getter.gets(&object);
        assert_eq!((proxy.count(), other.count()), (requests + 1, 0));
        assert_eq!((getter.host().as_str(), getter.proxy()), ("http://good.invalid/repo", proxy.url()));
    });
}

#[test]
fn a_dead_proxy_and_a_dead_server_cost_one_switch_each() {
    let object = Object::new(4, 30_000);
    let good = Scripted::new(Act::Serve).having(&object);
    let servers = format!("http://{}/repo;{}", refused(), good.repository());
    let getter = Getter::new(&servers, &format!("http://{};DIRECT", refused()), &["CVMFS_MAX_RETRIES=0"]);
    getter.gets(&object);
    assert_eq!((getter.host(), getter.proxy()), (good.repository(), "DIRECT".into()));
    assert_eq!((getter.stats.failovers.get(), getter.stats.retries.get(), good.count()), (2, 0, 1));
    // What was learned is not learned again.
    let next = Object::new(5, 100);
    good.put_object(&next);
    getter.gets(&next);
    assert_eq!(getter.stats.failovers.get(), 2);
}

#[test]
fn a_machine_that_does_not_answer_at_all_costs_the_timeout_and_no_more() {
    // A listener that nobody accepts from, its queue full: further connections hang.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connect = |_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300));
    let queued: Vec<_> = (0..10_000).map_while(|i| connect(i).ok()).collect();
    assert!(queued.len() < 10_000, "the queue has no end");
    let object = Object::new(16, 30_000);
    let good = Scripted::new(Act::Serve).having(&object);
    for (servers, proxies) in [
        (format!("http://{address}/repo;{}", good.repository()), "DIRECT".to_owned()),
        (good.repository(), format!("http://{address};{}", good.url())),
    ] {
        let getter = Getter::new(&servers, &proxies, &[]);
        let started = Instant::now();
        getter.gets(&object);
        let seconds = started.elapsed().as_secs_f64();
        assert!((1.9..4.0).contains(&seconds), "two attempts of a second each took {seconds} s");
        assert_eq!((getter.stats.retries.get(), getter.stats.failovers.get()), (1, 1));
    }
}

#[test]
fn a_timeout_of_zero_is_none() {
    let object = Object::new(17, 30_000);
    let server = Scripted::new(Act::ServeAfter(Duration::from_millis(200))).having(&object);
    Getter::new(&server.repository(), "DIRECT", &["CVMFS_TIMEOUT_DIRECT=0"]).gets(&object);
    Getter::new("http://server.invalid/repo", &server.url(), &["CVMFS_TIMEOUT=0"]).gets(&object);
    assert_eq!(server.count(), 2);
}

#[test]
fn names_that_nobody_knows_are_left_at_once() {
    let object = Object::new(6, 30_000);
    let good = Scripted::new(Act::Serve).having(&object);
    let unknown = "http://no-such-name.invalid/repo";
    let direct = Getter::new(&format!("{unknown};{}", good.repository()), "DIRECT", &["CVMFS_MAX_RETRIES=5"]);
    let proxies = format!("http://no-such-name.invalid:3128;{}", good.url());
    let through = Getter::new("http://server.invalid/repo", &proxies, &["CVMFS_MAX_RETRIES=5"]);
    for getter in [direct, through] {
        getter.gets(&object);
        assert_eq!((getter.stats.failovers.get(), getter.stats.retries.get()), (1, 0));
    }
    let nobody = Getter::new(&good.repository(), "http://no-such-name.invalid:3128", &[]);
    let said = nobody.refuses(&object);
    assert!(said.contains("cannot look up no-such-name.invalid"), "{said}");
}

#[test]
fn names_of_proxies_become_addresses() {
    let object = Object::new(7, 30_000);
    let proxy = Scripted::new(Act::Serve).having(&object);
    let url = format!("http://localhost:{}", proxy.address.port());
    let getter = Getter::new("http://server.invalid/repo", &url, &[]);
    getter.gets(&object);
    assert_eq!((proxy.count(), getter.proxy()), (1, url));
}

#[test]
fn all_proxies_are_tried_for_each_server_before_giving_up() {
    let object = Object::new(8, 30_000);
    let proxies: Vec<Scripted> = (0..3).map(|_| Scripted::new(Act::Close)).collect();
    let list = format!("{}|{};{}", proxies[0].url(), proxies[1].url(), proxies[2].url());
    let getter = Getter::new("http://a.invalid/repo;http://b.invalid/repo", &list, &[]);
    let said = getter.refuses(&object);
    assert!(said.contains("(the last of 12 attempts)"), "{said}");
    for proxy in &proxies {
        let asked = |server: &str| proxy.requests().iter().filter(|r| r.target.starts_with(server)).count();
        assert_eq!((asked("http://a.invalid/"), asked("http://b.invalid/")), (2, 2));
    }
}

#[test]
fn retries_wait_and_a_server_that_wants_patience_gets_it() {
    let object = Object::new(9, 30_000);
    // Header, BACKOFF_MAX, shortest and longest pause in seconds.
    let table = [
        ("Retry-After: 2\r\n", 5, 2.0, 3.5),
        ("Retry-After: 86400\r\n", 1, 1.0, 2.5),
        ("Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n", 5, 0.0, 1.5),
        ("", 5, 0.0, 1.5),
    ];
    all_at_once(&table, |(header, most, shortest, longest)| {
        let (header, mut first) = (*header, true);
        let script = move |_: &Request| match std::mem::take(&mut first) {
            true => Act::Status(429, header),
            false => Act::Serve,
        };
        let server = Scripted::with(script).having(&object);
        let getter = Getter::new(&server.repository(), "DIRECT", &[&format!("CVMFS_BACKOFF_MAX={most}")]);
        getter.gets(&object);
        let requests = server.requests();
        let pause = (requests[1].at - requests[0].at).as_secs_f64();
        assert!(requests.len() == 2 && (*shortest..*longest).contains(&pause), "{header:?}: {pause} s");
    });
}

#[test]
fn corrupt_data_is_asked_for_past_the_caches_before_anything_else() {
    let object = Object::new(10, 30_000);
    let script = |request: &Request| if request.has("pragma: no-cache") { Act::Serve } else { Act::Wrong };
    let stale = Scripted::with(script).having(&object);
    let getter = Getter::new("http://a.invalid/repo;http://b.invalid/repo", &stale.url(), &["CVMFS_MAX_RETRIES=5"]);
    getter.gets(&object);
    let requests = stale.requests();
    assert_eq!((requests.len(), getter.stats.failovers.get()), (2, 0));
    assert!(!requests[0].has("cache-control: no-cache") && requests[1].has("cache-control: no-cache"));
}

#[test]
fn requests_say_who_asks_and_keep_their_connection() {
    let objects: Vec<Object> = (0..5).map(|seed| Object::new(100 + seed, 1000)).collect();
    let server = Scripted::new(Act::Serve);
    objects.iter().for_each(|object| server.put_object(object));
    let getter = Getter::new(&server.repository(), "DIRECT", &[]);
    objects.iter().for_each(|object| getter.gets(object));
    for request in server.requests() {
        assert!(request.headers.iter().any(|header| header.starts_with("user-agent: cvmfs-client/")), "{request:?}");
        let unwanted = ["pragma", "cache-control", "accept-encoding", "referer", "cookie", "connection: close"];
        assert!(!request.headers.iter().any(|h| unwanted.iter().any(|name| h.starts_with(name))), "{request:?}");
    }
}

#[test]
fn redirects_are_errors_unless_they_are_wanted() {
    let object = Object::new(11, 30_000);
    let target = Scripted::new(Act::Serve).having(&object);
    // `/4/repo/…` leads to `/3/repo/…` and so on, `/0/repo/…` to the target.
    let hop = |target: String, itself: Arc<std::sync::OnceLock<String>>| {
        move |request: &Request| {
            let (left, path) = request.path[1..].split_once('/').unwrap();
            Act::Redirect(match left.parse::<u32>().unwrap() {
                0 => format!("{target}/{path}"),
                left => format!("{}/{}/{path}", itself.get().unwrap(), left - 1),
            })
        }
    };
    let itself = Arc::new(std::sync::OnceLock::new());
    let chain = Scripted::with(hop(target.url(), itself.clone()));
    itself.set(chain.url()).unwrap();
    let get = |hops: u32, options: &[&str]| {
        let getter = Getter::new(&format!("{}/{}/repo", chain.url(), hops - 1), "DIRECT", options);
        getter.get(&object).map(|content| assert!(content == object.plain)).map_err(|e| e.to_string())
    };
    let follow = &["CVMFS_FOLLOW_REDIRECTS=yes"][..];
    assert!(get(1, &[]).unwrap_err().contains("302"));
    assert_eq!(get(1, follow), Ok(()));
    assert_eq!(get(4, follow), Ok(()));
    assert!(get(5, follow).unwrap_err().contains("redirect"));
}

#[test]
fn the_first_group_and_the_first_server_come_back() {
    let objects: Vec<Object> = (0..3).map(|seed| Object::new(200 + seed, 1000)).collect();
    let make = || {
        let server = Scripted::new(Act::Serve);
        objects.iter().for_each(|object| server.put_object(object));
        server
    };
    let (first, second) = (make(), make());
    let servers = format!("{};{}", first.repository(), second.repository());
    let proxies = format!("{};{}", first.url(), second.url());
    let resets = ["CVMFS_PROXY_RESET_AFTER=1", "CVMFS_HOST_RESET_AFTER=1"];
    for getter in [Getter::new(&servers, "DIRECT", &resets), Getter::new("http://x.invalid/repo", &proxies, &resets)] {
        first.act(Act::Status(503, "X-Squid-Error: ERR_CONNECT_FAIL 111\r\n"));
        let before = (first.count(), second.count());
        getter.gets(&objects[0]);
        first.act(Act::Serve);
        getter.gets(&objects[1]);
        assert_eq!((first.count(), second.count()), (before.0 + 1, before.1 + 2));
        std::thread::sleep(Duration::from_millis(1100));
        getter.gets(&objects[2]);
        assert_eq!((first.count(), second.count()), (before.0 + 2, before.1 + 2));
    }
}

#[test]
fn clients_spread_over_the_members_of_a_group() {
    let objects: Vec<Object> = (0..4).map(|seed| Object::new(300 + seed, 1000)).collect();
    let proxies: Vec<Scripted> = (0..2).map(|_| Scripted::new(Act::Serve)).collect();
    for (proxy, object) in proxies.iter().flat_map(|proxy| objects.iter().map(move |object| (proxy, object))) {
        proxy.put_object(object);
    }
    let list = format!("{}|{}", proxies[0].url(), proxies[1].url());
    let clients = 40;
    for _ in 0..clients {
        let before: Vec<usize> = proxies.iter().map(Scripted::count).collect();
        let getter = Getter::new("http://server.invalid/repo", &list, &[]);
        objects.iter().for_each(|object| getter.gets(object));
        let mut used: Vec<usize> = proxies.iter().zip(before).map(|(proxy, before)| proxy.count() - before).collect();
        used.sort_unstable();
        assert_eq!(used, [0, objects.len()], "one client uses one proxy, whose cache it fills");
    }
    let shares: Vec<usize> = proxies.iter().map(|proxy| proxy.count() / objects.len()).collect();
    // Fewer than 5 of 40 by chance: once in ten million runs.
    assert!(shares.iter().sum::<usize>() == clients && shares.iter().all(|share| *share >= 5), "{shares:?}");
}

#[test]
fn shards_share_the_objects_and_survive_the_loss_of_a_proxy() {
    let objects: Vec<Object> = (0..60).map(|seed| Object::new(400 + seed, 1000)).collect();
    let mut proxies: Vec<Scripted> = (0..3).map(|_| Scripted::new(Act::Serve)).collect();
    for (proxy, object) in proxies.iter().flat_map(|proxy| objects.iter().map(move |object| (proxy, object))) {
        proxy.put_object(object);
    }
    let list = proxies.iter().map(Scripted::url).collect::<Vec<_>>().join("|");
    let placed = |proxies: &[Scripted]| -> BTreeMap<String, usize> {
        let asked = |(i, proxy): (usize, &Scripted)| {
            proxy.requests().into_iter().map(move |request| (request.path, i)).collect::<Vec<_>>()
        };
        proxies.iter().enumerate().flat_map(asked).collect()
    };
    let shard = || Getter::new("http://server.invalid/repo", &list, &["CVMFS_PROXY_SHARD=yes", "CVMFS_MAX_RETRIES=0"]);
    for _ in 0..2 {
        let getter = shard();
        objects.iter().for_each(|object| getter.gets(object));
    }
    let before = placed(&proxies);
    let counts: Vec<usize> = proxies.iter().map(Scripted::count).collect();
    assert!(counts.iter().all(|count| *count >= 10 && count % 2 == 0), "{counts:?}");
    assert_eq!(counts.iter().sum::<usize>(), 2 * objects.len(), "both clients place every object alike");
    proxies[0].stop();
    let getter = shard();
    objects.iter().for_each(|object| getter.gets(object));
    assert_eq!(getter.stats.failovers.get(), 1, "the lost proxy is noticed once");
    let after = placed(&proxies[1..]);
    for (path, i) in before.into_iter().filter(|(_, i)| *i > 0) {
        assert_eq!(after[&path], i - 1, "an object of a proxy that is still there has moved");
    }
}

#[test]
fn many_who_want_one_object_make_one_request() {
    let object = Object::new(12, 300_000);
    let server = Scripted::new(Act::ServeAfter(Duration::from_millis(300))).having(&object);
    let getter = Getter::new(&server.repository(), "DIRECT", &[]);
    std::thread::scope(|scope| (0..40).for_each(|_| drop(scope.spawn(|| getter.gets(&object)))));
    assert_eq!((server.count(), getter.stats.downloads.get()), (1, 1));
}

#[test]
fn many_objects_share_sixteen_connections_and_a_dead_proxy_sees_no_storm() {
    let objects: Vec<Object> = (0..100).map(|seed| Object::new(500 + seed, 1000)).collect();
    let (dead, good) = (Scripted::new(Act::Close), Scripted::new(Act::ServeAfter(Duration::from_millis(50))));
    objects.iter().for_each(|object| good.put_object(object));
    let getter = Getter::new("http://server.invalid/repo", &format!("{};{}", dead.url(), good.url()), &[]);
    let get = |object: &Object| getter.gets(object);
    std::thread::scope(|scope| objects.iter().for_each(|object| drop(scope.spawn(|| get(object)))));
    assert_eq!(good.count(), objects.len());
    assert!((2..=16).contains(&good.busiest()), "{} at the same time", good.busiest());
    // Those that were on their way when it failed, each with one retry.
    assert!((2..=32).contains(&dead.count()), "{} requests", dead.count());
    assert!(getter.stats.failovers.get() <= 16);
}

#[test]
fn what_fails_again_and_again_is_slowed_down() {
    let object = Object::new(13, 1000);
    let server = Scripted::new(Act::Serve);
    let getter = Getter::new(&server.repository(), "DIRECT", &[]);
    let (started, mut asked) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_secs(5) {
        assert!(getter.refuses(&object).contains("404"));
        asked += 1;
    }
    assert_eq!(server.count(), asked);
    // Without pauses it would be thousands.
    assert!((2..200).contains(&asked), "{asked} requests in 5 seconds");
}

#[test]
fn failing_over_for_ever_waits_until_a_proxy_is_back() {
    let object = Object::new(14, 30_000);
    let address = refused();
    let options = ["CVMFS_FAILOVER_INDEFINITELY=yes", "CVMFS_BACKOFF_MAX=1"];
    let getter = Getter::new("http://server.invalid/repo", &format!("http://{address}"), &options);
    std::thread::scope(|scope| {
        let getting = scope.spawn(|| getter.gets(&object));
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!getting.is_finished());
        let proxy = Scripted::on(address, Act::Serve).having(&object);
        getting.join().unwrap();
        assert_eq!(proxy.count(), 1);
    });
}

#[test]
fn servers_are_sorted_by_the_geo_api_and_counted_then() {
    let object = Object::new(15, 1000);
    let near = Scripted::new(Act::Serve).having(&object);
    let geo = |answer: &'static [u8]| {
        move |request: &Request| match request.path.starts_with("/repo/api/v1.0/geo/") {
            true => Act::Instead(answer.to_vec().into()),
            false => Act::Status(404, ""),
        }
    };
    for (answer, options, first) in [
        (&b"3,1,2\n"[..], &[][..], Some(2)),
        (b"3,1,2\n", &["CVMFS_MAX_SERVERS=1"], Some(2)),
        (b"3,1\n", &[], None),
        (b"<html></html>", &["CVMFS_MAX_SERVERS=2"], None),
    ] {
        let far: Vec<Scripted> = (0..2).map(|_| Scripted::with(geo(answer))).collect();
        let repositories = [far[0].repository(), far[1].repository(), near.repository()];
        // The near one can't sort; asked first or not, another one is.
        let getter = Getter::new(&repositories.join(";"), "DIRECT", &[&["CVMFS_USE_GEOAPI=yes"], options].concat());
        let outcome = getter.get(&object);
        let most = if options.is_empty() { 3 } else { options[0][18..].parse().unwrap() };
        let servers = getter.objects.transport().routes().servers();
        assert_eq!(servers.len(), most);
        assert_eq!(&*servers[0], repositories[first.unwrap_or(0)], "{answer:?}");
        assert_eq!(outcome.is_ok(), first.is_some() || most == 3, "{answer:?} {options:?}");
        let asked = |server: &Scripted| server.requests().into_iter().filter(|r| r.path.contains("/geo/")).count();
        let questions: usize = far.iter().map(asked).sum();
        assert_eq!(questions, if first.is_some() { 1 } else { 2 }, "{answer:?}");
        let question = far.iter().flat_map(Scripted::requests).find(|r| r.path.contains("/geo/")).unwrap();
        assert!(question.path.ends_with("/127.0.0.1,127.0.0.1,127.0.0.1"), "{question:?}");
    }
}

#[test]
fn automatic_proxies_alone_are_refused_with_what_to_do_and_left_out_of_a_list() {
    let load = |proxy: &str| {
        let flags = client::config::Flags {
            server_url: Some("http://server.invalid/repo".into()),
            public_keys: vec!["/k.pub".into()],
            proxy: Some(proxy.into()),
            ..Default::default()
        };
        client::config::Config::load("a.example.org", "/nonexistent".as_ref(), &flags)
    };
    for alone in ["auto", "auto;auto", " auto | auto ;"] {
        let said = load(alone).unwrap_err().to_string();
        assert!(said.contains("CVMFS_HTTP_PROXY=auto") || alone != "auto", "{said}");
        assert!(said.contains("a list of proxies"), "{alone}: {said}");
    }
    for (list, expected) in [
        ("auto;DIRECT", vec![vec![None]]),
        ("auto|p:1;DIRECT", vec![vec![Some("http://p:1")], vec![None]]),
        ("p:1;auto", vec![vec![Some("http://p:1")]]),
    ] {
        let config = load(list).unwrap();
        let found: Vec<Vec<_>> =
            config.network.proxies.iter().map(|group| group.iter().map(Option::as_deref).collect()).collect();
        assert_eq!(found, expected, "{list}");
        let remarks = client::config::table::remarks(&config.parameters).join("\n");
        assert!(remarks.contains("auto is left out"), "{list}: {remarks}");
    }
}

#[test]
fn a_list_that_begins_with_automatic_proxies_is_used_from_its_next_group_on() {
    let object = Object::new(16, 1000);
    let (server, proxy) = (Scripted::new(Act::Serve).having(&object), Scripted::new(Act::Serve).having(&object));
    for (list, counts) in [(format!("auto;{}", proxy.url()), (1, 0)), ("auto;DIRECT".to_owned(), (1, 1))] {
        Getter::new(&server.repository(), &list, &[]).gets(&object);
        assert_eq!((proxy.count(), server.count()), counts, "{list}");
    }
}
