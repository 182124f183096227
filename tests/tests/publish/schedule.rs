//! What is fetched first, how much at once, and what a full disk costs.

use image::reference::Wish;
use publisher::convert::{Request, RoomLimits};
use publisher::report::Outcome::{Added, Failed, Unchanged};
use registry::testing::{Fault, TestRegistry};
use scenarios::image_builder::{Image, Layer, Packing, dir, file, hardlink, noise, symlink};
use scenarios::repository::{Site, assert_flat, outcomes, wish};

fn one(seed: u64, size: usize) -> Image {
    Image::new([Layer::new(&[file("f", noise(seed, size))], Packing::Gzip)])
}

#[test]
fn owners_take_turns_and_priority_comes_first() {
    let (registry, mut site) = (TestRegistry::spawn(), Site::new());
    site.options.jobs = 1;
    let mut digests = Vec::new();
    let mut requests = Vec::new();
    let mut ask = |number: u64, owner: &str, priority: i32, size: usize| {
        let image = one(number, size);
        digests.push(image.layers[0].digest.to_string());
        image.push(&registry, "lab/x", &number.to_string());
        let text = wish(&registry, &format!("lab/x:{number}"));
        let source = Wish::parse(&text).unwrap();
        requests.push(Request { owner: Some(owner.to_owned()), priority, ..Request::new(text, source) });
    };
    for number in 0..5 {
        ask(number, "many", 0, 50_000);
    }
    ask(10, "one", 0, 20_000);
    ask(11, "one", 0, 20_000);
    ask(20, "late", 1, 1000);
    let converter = site.converter();
    let plan = converter.plan(&requests).unwrap();
    registry.forget_requests();
    let report = converter.apply(&plan).unwrap();
    assert_eq!(outcomes(&report), [Added; 8]);
    let order: Vec<usize> = registry
        .requests()
        .iter()
        .filter_map(|request| digests.iter().position(|digest| request.path.ends_with(digest.as_str())))
        .collect();
    assert_eq!(order, [7, 0, 5, 6, 1, 2, 3, 4]);
}

/// Layers with links into those below wait for them in the room that they take; nobody waits for ever, and a failure takes nobody along.
#[test]
fn the_smallest_room_is_enough_for_any_image() {
    for (jobs, preparing) in [(4, 1), (1, 100_000)] {
        let (registry, mut site) = (TestRegistry::spawn(), Site::new());
        site.options.jobs = jobs;
        site.options.room = RoomLimits { preparing, keep_free: 0 };
        let mut wishes = Vec::new();
        let mut pushed = Vec::new();
        for number in 0..3_u64 {
            let base = vec![
                dir("usr"),
                dir("usr/bin"),
                file("usr/bin/tool", noise(number, 30_000)),
                symlink("bin", "usr/bin"),
            ];
            let mut layers = vec![base];
            for height in 0..14 {
                layers.push(vec![
                    file(format!("bin/{number}-{height}"), noise(100 * number + height, 500)),
                    hardlink(format!("again{height}"), "usr/bin/tool"),
                ]);
            }
            let image = Image::of(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>());
            if number == 1 {
                // Its lowest layer is not to be had, so all the others have nothing to stand on.
                registry.fault(Fault::status(404).on(&image.layers[0].digest.to_string()).always());
            }
            pushed.push((image.push(&registry, "lab/x", &number.to_string()), layers));
            wishes.push(wish(&registry, &format!("lab/x:{number}")));
        }
        let report = site.convert(&wishes);
        assert_eq!(outcomes(&report), [Added, Failed, Added], "{jobs} jobs in {preparing} bytes");
        registry.heal();
        assert_eq!(outcomes(&site.convert(&wishes)), [Unchanged, Added, Unchanged]);
        for (image, layers) in &pushed {
            let expected = scenarios::naive::unpack(layers.iter().map(Vec::as_slice));
            assert_flat(&site, image.config, &expected, "linked through all layers");
        }
        site.assert_sound();
    }
}

#[test]
fn a_full_disk_fails_the_images_that_need_it_and_no_others() {
    let (registry, mut site) = (TestRegistry::spawn(), Site::new());
    let shared = Layer::new(&[file("f", noise(1, 1000))], Packing::Gzip);
    let known = Image::new([shared.clone()]);
    known.push(&registry, "lab/x", "known");
    site.convert(&[wish(&registry, "lab/x:known")]);
    let mut relabelled = Image::new([shared]);
    relabelled.config["config"]["Labels"] = serde_json::json!({ "of": "another image" });
    relabelled.push(&registry, "lab/x", "relabelled");
    one(2, 1000).push(&registry, "lab/x", "new");
    site.options.room = RoomLimits { keep_free: u64::MAX / 2, ..RoomLimits::default() };
    let wishes = ["known", "new", "relabelled"].map(|tag| wish(&registry, &format!("lab/x:{tag}")));
    let report = site.convert(&wishes);
    assert_eq!(outcomes(&report), [Unchanged, Failed, Added]);
    let error = report.wishes[1].error.as_deref().unwrap();
    assert!(error.contains("--keep-free") && error.contains("left"), "{error}");
    assert_eq!(report.wishes[1].bytes.downloaded, 0);
    site.options.room = RoomLimits { keep_free: 0, ..RoomLimits::default() };
    assert_eq!(outcomes(&site.convert(&wishes)), [Unchanged, Added, Unchanged]);
    site.assert_sound();
}
