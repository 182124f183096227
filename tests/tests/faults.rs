//! A registry that fails at random, in every way it can: everything converges, nothing wrong is published, and its budget is kept.
//!
//! `FAULT_IMAGES`, `FAULT_ROUNDS` and `FAULT_SEED` choose another run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use image::reference::Wish;
use publisher::convert::{Converter, Request};
use publisher::report::Outcome;
use publisher::source::Sources;
use registry::testing::TestRegistry;
use registry::{Budgets, Client, ClientConfig, Registries, RetryPolicy, Settings};
use scenarios::image_builder::{Image, Layer, Member, Packing, Pushed, dir, file, noise, whiteout};
use scenarios::naive;
use scenarios::repository::{Site, assert_flat, wish};

/// Requests a second, at once after a silence, and in flight.
const BUDGET: (f64, u32, usize) = (150.0, 20, 6);
/// Passes after which everything has to be there: each image fails independently of the others.
const PASSES: usize = 40;

struct Stack {
    pushed: Pushed,
    layers: Vec<Vec<Member>>,
}

/// An image of one to four layers, some of them shared with others, in all packings.
fn push(registry: &TestRegistry, random: &mut fastrand::Rng, round: usize, number: usize) -> Stack {
    let mut layers = vec![vec![dir("etc"), file("etc/base", noise(random.u64(..3), 20_000))]];
    for height in 0..random.usize(..4) {
        let size = random.usize(10..40_000);
        layers.push(vec![
            file(format!("own/{number}/{height}"), noise(random.u64(..), size)),
            if random.bool() { whiteout("etc/base") } else { file("etc/base", noise(random.u64(..), 100)) },
        ]);
    }
    let packings = [Packing::Gzip, Packing::Zstd, Packing::Plain];
    let packed = layers.iter().enumerate().map(|(at, layer)| Layer::new(layer, packings[at % packings.len()]));
    let mut image = Image::new(packed);
    image.config["config"]["Labels"] = serde_json::json!({ "round": round.to_string(), "number": number.to_string() });
    Stack { pushed: image.push(registry, "lab/x", &number.to_string()), layers }
}

fn client(registry: &TestRegistry, budgets: &Budgets) -> Client {
    let (requests_per_second, burst, in_flight) = BUDGET;
    let said = serde_json::json!({ "registries": { registry.address().to_string(): {
        "requests_per_second": requests_per_second, "burst": burst, "in_flight": in_flight,
    } } });
    let settings: Settings = serde_json::from_value(said).unwrap();
    let registries: Arc<Registries> = Arc::new(settings.check().unwrap());
    let retry = RetryPolicy {
        attempts: 4,
        first_delay: Duration::from_millis(5),
        longest_delay: Duration::from_millis(50),
        longest_wait: Duration::from_secs(5),
        progress: 1000,
    };
    Client::new(ClientConfig { registries, budgets: budgets.clone(), retry, ..ClientConfig::default() }).unwrap()
}

/// No span of time saw more requests than the budget allows. Those that were let go before a span may arrive within it.
fn assert_budget(at: &[Instant]) {
    let (per_second, burst, in_flight) = BUDGET;
    for width in [burst as usize + in_flight + 1, 100, 400, 1600] {
        for span in at.windows(width) {
            let seconds = span[width - 1].duration_since(span[0]).as_secs_f64();
            let share = f64::from(burst) + per_second * seconds + in_flight as f64;
            assert!(width as f64 <= share + 1.0, "{width} requests in {seconds} s, {share} are allowed");
        }
    }
}

#[test]
fn everything_converges_and_nothing_wrong_is_published() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (images, rounds) = (number("FAULT_IMAGES").unwrap_or(12), number("FAULT_ROUNDS").unwrap_or(2));
    let seed = number("FAULT_SEED").unwrap_or(1);
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    registry.require_token(&registry);
    let budgets = Budgets::default();
    let mut random = fastrand::Rng::with_seed(seed as u64);
    let (mut requests, mut failures) = (0, 0);
    for round in 0..rounds {
        registry.heal();
        let stacks: Vec<Stack> = (0..images).map(|number| push(&registry, &mut random, round, number)).collect();
        let wishes: Vec<Request> = (0..images)
            .map(|number| {
                let text = wish(&registry, &format!("lab/x:{number}"));
                let source = Wish::parse(&text).unwrap();
                Request { owner: Some((number % 3).to_string()), ..Request::new(text, source) }
            })
            .collect();
        let mut open = images;
        for pass in 0.. {
            assert!(pass < PASSES, "FAULT_SEED={seed}: {open} images of round {round} are not published");
            registry.fault_at_random(random.u64(..), 20);
            // Tokens that are refused in the middle of everything.
            registry.revoke_tokens();
            let converter = Converter {
                sources: Sources::new(client(&registry, &budgets), runtime.handle().clone(), site.target.scratch()),
                ..site.converter()
            };
            let plan = converter.plan(&wishes).unwrap();
            let report = converter.apply(&plan).unwrap();
            open = report.count(Outcome::Failed);
            failures += open;
            let seen = registry.requests();
            // Tokens are not bought of the registry, as a rule; here they are, and are not counted.
            let at: Vec<Instant> = seen.iter().filter(|r| !r.path.starts_with("/token")).map(|r| r.at).collect();
            assert_budget(&at);
            requests += at.len();
            registry.forget_requests();
            if open == 0 {
                break;
            }
        }
        for (number, stack) in stacks.iter().enumerate() {
            let expected = naive::unpack(stack.layers.iter().map(Vec::as_slice));
            assert_flat(
                &site,
                stack.pushed.config,
                &expected,
                &format!("FAULT_SEED={seed}, round {round}, image {number}"),
            );
        }
        site.assert_sound();
    }
    let throttled: u64 = budgets.snapshot().iter().map(|seen| seen.throttled).sum();
    eprintln!(
        "{requests} requests, {throttled} pauses, {failures} failures of images on the way, {rounds} rounds of {images} images"
    );
    assert!(throttled > 0 && requests > 0, "the faults were not met");
}
