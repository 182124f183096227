//! Which layers and flats are condemned, swept and kept.

use cvmfs::entry::{Entry, Meta};
use cvmfs::path::RepoPath;
use image::layout::timestamp;
use publisher::cli::Check;
use publisher::failure::Failure;
use publisher::removal::{self, Options, Pin, Usage};
use publisher::repair;
use publisher::report::Outcome::{Added, Updated};
use scenarios::fixtures::Fixture;
use scenarios::image_builder::Packing;
use scenarios::repository::assert_outcome;
use scenarios::takeover::{Images, adopt_with_new_keys, available};

use crate::world::{AGES, DAY, World, at_once, layer, packed, usual};

fn path(text: &str) -> RepoPath {
    RepoPath::ROOT.join_path(text).unwrap()
}

#[test]
fn a_moved_tag_leaves_what_it_needed_condemned_until_grace_is_over() {
    let world = World::new();
    let old = world.push("a:1", &[layer(1), layer(2)]);
    world.convert(&["a:1"]);
    let new = world.push("a:1", &[layer(1), layer(3)]);
    world.convert(&["a:1"]);
    world.pass(DAY);

    let dry = world.collect_with(&Options { dry_run: true, ..usual() });
    let before = world.look();
    assert!(before.condemned.is_empty() && dry.revision == dry.revision_before, "a dry run changes nothing");
    let done = world.collect();
    assert_eq!((&done.condemned, &done.swept), (&dry.condemned, &dry.swept), "what was shown is what is done");
    assert_eq!(done.revision, done.revision_before + 1);
    let look = world.look();
    assert_eq!(look.condemned.len(), 2, "the shared layer stays");
    let record = &look.condemned[&format!("layer/{}", old.layers[1].hex())];
    assert_eq!((record.since.clone(), record.reason.as_str()), (timestamp(world.now()), "tag moved"));
    assert_eq!(record.last_images, [world.path("a:1")]);
    assert_eq!(look.users[&old.layers[0].hex()].iter().copied().collect::<Vec<_>>(), [new.config]);
    assert!(!look.users.contains_key(&old.layers[1].hex()));

    world.pass(30 * DAY - 1);
    let waits = world.collect();
    assert_eq!((waits.swept.len(), waits.waiting.len(), waits.revision), (0, 2, waits.revision_before));
    assert!(world.look().has_layer(old.layers[1]) && world.look().has_flat(old.config));
    world.pass(1);
    let swept = world.collect();
    assert_eq!((swept.swept.len(), swept.forgotten), (2, 1));
    let look = world.look();
    assert!(!look.has_layer(old.layers[1]) && !look.has_flat(old.config) && look.condemned.is_empty());
    assert!(look.has_layer(old.layers[0]) && look.has_layer(new.layers[1]) && look.has_flat(new.config));
    assert!(look.earlier.is_empty());
    assert!(look.index.values().all(|to| *to != old.layers[1].hex()));
    assert!(!look.documents.contains(&format!("manifest/{}", old.manifest.hex())));
    assert!(look.documents.contains(&format!("manifest/{}", new.manifest.hex())));
    world.site.assert_sound();
    let nothing = world.collect();
    assert_eq!(nothing.revision, nothing.revision_before);
}

#[test]
fn a_layer_wished_again_is_reprieved_and_its_next_grace_begins_anew() {
    let world = World::new();
    let image = world.push("a:1", &[layer(1)]);
    world.convert(&["a:1"]);
    removal::remove(&world.site.target, &world.wish("a:1"), false).unwrap();
    world.collect();
    assert!(world.look().is_condemned(image.layers[0]));
    world.pass(29 * DAY);
    // Another name for the same layer, published and dropped without a collection in between.
    world.push("b:1", &[layer(1)]);
    world.convert(&["b:1"]);
    assert!(!world.look().is_condemned(image.layers[0]), "whoever needs it says so");
    removal::remove(&world.site.target, &world.wish("b:1"), false).unwrap();
    world.pass(2 * DAY);
    world.collect();
    world.pass(29 * DAY);
    world.collect();
    assert!(world.look().has_layer(image.layers[0]));
    world.pass(DAY);
    world.collect();
    assert!(!world.look().has_layer(image.layers[0]));
    world.site.assert_sound();
}

#[test]
fn an_unreadable_record_stops_everything_and_is_named() {
    let world = World::new();
    for (n, name) in [(1, "a:1"), (2, "b:1"), (3, "c:1")] {
        world.push(name, &[layer(n)]);
    }
    world.convert(&["a:1", "b:1", "c:1"]);
    removal::remove(&world.site.target, &world.wish("c:1"), false).unwrap();
    let fork = |edit: &dyn Fn(&mut cvmfs::transaction::Transaction)| {
        let fork = World::of(world.site.fork());
        fork.edit(edit);
        fork.pass(AGES);
        let Failure::Unmarked { path, .. } = fork.collect_error() else { panic!("another error") };
        path
    };
    let records = format!("/.metadata/{}", world.path("b:1"));
    let damaged = |name: &'static str| {
        let at = path(&format!("{}/{name}", &records[1..]));
        fork(&move |transaction| {
            let mut entry = transaction.lookup(&at).unwrap().unwrap();
            // The object of another file.
            let other = transaction.lookup(&at.parent().unwrap().join("config.json")).unwrap().unwrap();
            (entry.content, entry.size) = (other.content, other.size);
            transaction.put(&at, entry, &[]).unwrap();
        })
    };
    assert_eq!(damaged("manifest.json"), format!("{records}/manifest.json"));
    assert_eq!(damaged("status.json"), format!("{records}/status.json"));
    let missing = path(&format!("{}/manifest.json", &records[1..]));
    assert_eq!(fork(&|t| t.remove(&missing).unwrap()), records);
    let flat = path(&format!(".flat/{}", {
        let look = world.look();
        let hex = look.links[&world.path("b:1")].clone();
        format!("{}/{hex}", &hex[..2])
    }));
    assert_eq!(fork(&|t| t.remove(&flat).unwrap()), format!("/{}", world.path("b:1")));
    // None of it hinders the removal of what is damaged, and then nothing is in the way any more.
    let broken = World::of(world.site.fork());
    broken.edit(|t| t.remove(&missing).unwrap());
    removal::remove(&broken.site.target, &world.wish("b:1"), false).unwrap();
    broken.pass(AGES);
    assert_eq!(broken.collect_with(&at_once()).swept.len(), 4);
    broken.site.assert_sound();
}

#[test]
fn a_link_of_the_index_leads_to_another_layer_with_the_same_content() {
    let world = World::new();
    let first = world.push("a:1", &[packed(1, Packing::Gzip)]);
    world.convert(&["a:1"]);
    let second = world.push("b:1", &[packed(1, Packing::Zstd)]);
    world.convert(&["b:1"]);
    let key = format!("diff-id/{}", first.diff_ids[0].hex());
    assert_eq!(world.look().index[&key], first.layers[0].hex(), "the first writer stays");
    removal::remove(&world.site.target, &world.wish("a:1"), false).unwrap();
    world.collect_with(&at_once());
    let look = world.look();
    assert!(!look.has_layer(first.layers[0]) && look.has_layer(second.layers[0]));
    assert!(look.has_flat(second.config), "the config is the same");
    assert_eq!(look.index.values().collect::<Vec<_>>(), [&second.layers[0].hex(); 2]);
    world.site.assert_sound();
}

#[test]
fn pins_kept_images_and_what_nodes_use_stay() {
    let world = World::new();
    let mut pushed = Vec::new();
    for n in 1..=5 {
        pushed.push(world.push("a:1", &[layer(n)]));
        world.convert(&["a:1"]);
        if n == 1 {
            removal::pin(&world.site.target, &world.wish("a:1"), Pin::Set).unwrap();
        }
        world.pass(DAY);
    }
    // The pinned first one, the fourth as the last before the present one, the third on some node.
    let mut usage = Usage::default();
    usage.add(format!("{{\"image\": \"{}\"}}", pushed[2].manifest).as_bytes());
    let options = Options { keep_versions: 1, usage, ..at_once() };
    let done = world.collect_with(&options);
    assert_eq!(done.swept.len(), 2, "{done:?}");
    let there = |world: &World| pushed.iter().map(|p| world.look().has_layer(p.layers[0])).collect::<Vec<_>>();
    assert_eq!(there(&world), [true, false, true, true, true]);
    world.collect_with(&at_once());
    assert_eq!(there(&world), [true, false, false, false, true]);
    removal::pin(&world.site.target, &world.wish("a:1"), Pin::Remove).unwrap();
    world.pass(AGES);
    world.collect();
    assert!(there(&world)[0], "its grace begins when the pin is given up");
    world.pass(30 * DAY);
    world.collect();
    assert_eq!(there(&world), [false, false, false, false, true]);
    world.site.assert_sound();
}

#[test]
fn what_a_running_conversion_relies_on_is_hung_in_again() {
    let world = World::new();
    let old = world.push("a:1", &[layer(1), layer(2)]);
    world.convert(&["a:1"]);
    removal::remove(&world.site.target, &world.wish("a:1"), false).unwrap();
    // One has the flat, the other only a layer.
    world.push("same:1", &[layer(1), layer(2)]);
    world.push("other:1", &[layer(1), layer(3)]);
    for name in ["same:1", "other:1"] {
        let fork = world.site.fork();
        let converter = fork.converter();
        let plan = fork.plan(&[world.wish(name)]);
        assert_eq!(removal::collect(&fork.target, &at_once()).unwrap().swept.len(), 3);
        world.registry.forget_requests();
        let report = converter.apply(&plan).unwrap();
        assert_outcome(&report.wishes[0], Added);
        assert_eq!(world.registry.count("GET", &old.layers[0].to_string()), 0, "nothing is fetched again");
        let look = crate::world::Look::at(&fork);
        assert!(look.has_layer(old.layers[0]) && look.flats.contains(&look.links[&world.path(name)]));
        fork.assert_sound();
    }
}

#[test]
fn what_the_existing_publisher_wrote_is_in_use() {
    if !available() {
        return;
    }
    for fixture in ["ducc", "ducc-run1"] {
        let world = World::of(adopt_with_new_keys(&Fixture::unpack(fixture)));
        let before = world.look();
        world.pass(AGES);
        let done = world.collect_with(&at_once());
        let needed: Vec<&str> = done
            .swept
            .iter()
            .map(|l| l.path.as_str())
            .filter(|p| before.links.values().any(|f| p.ends_with(f.as_str())))
            .collect();
        assert!(needed.is_empty(), "{needed:?}");
        let look = world.look();
        assert_eq!(look.links, before.links);
        assert!(look.links.values().all(|flat| look.flats.contains(flat)));
        world.site.assert_sound();
    }
}

#[test]
fn layers_of_the_existing_publisher_go_when_their_images_do() {
    if !available() {
        return;
    }
    let world = World::of(adopt_with_new_keys(&Fixture::unpack("ducc")));
    let images = Images::read();
    images.push_all(&world.registry);
    let wishes = scenarios::takeover::wishes(&world.registry);
    let report = world.site.convert_as(&wishes.iter().map(|(w, n)| (w.as_str(), Some(n.as_str()))).collect::<Vec<_>>());
    assert!(report.wishes.iter().all(|w| w.outcome != Updated), "{report:?}");
    // Its store is in use until somebody takes it away.
    world.edit(|t| t.remove(&path("podmanStore")).unwrap());
    for (_, name) in &wishes {
        removal::remove(&world.site.target, name, false).unwrap();
    }
    let done = world.collect_with(&at_once());
    assert!(done.swept.len() > 4, "{done:?}");
    let look = world.look();
    assert!(look.layers.is_empty() && look.flats.is_empty() && look.links.is_empty(), "{look:?}");
    assert!(look.index.is_empty() && look.documents.is_empty() && look.users.is_empty(), "{look:?}");
    let fix = Check {
        fqrn: world.site.target.fqrn.clone(),
        data: false,
        fix: true,
        dry_run: true,
        yes_change_live_layers: false,
    };
    repair::fix(&fix, &world.site.target, true).unwrap();
    world.site.assert_sound();
}

#[test]
fn links_that_operators_made_count() {
    let world = World::new();
    let image = world.push("a:1", &[layer(1)]);
    world.convert(&["a:1"]);
    let target = format!("/cvmfs/images.example.org/.flat/{}/{}", image.config.bucket(), image.config.hex());
    world.edit(|t| {
        let link = Entry::symlink(
            "stable",
            Meta { permissions: 0o777, ..publisher::target::file_meta(time::UtcDateTime::now()) },
            target,
        );
        t.put(&path("stable"), link, &[]).unwrap();
    });
    removal::remove(&world.site.target, &world.wish("a:1"), false).unwrap();
    world.pass(AGES);
    world.collect_with(&at_once());
    let look = world.look();
    assert!(look.has_flat(image.config) && !look.has_layer(image.layers[0]));
    world.site.assert_sound();
}
