//! Names that are removed, put back, pinned and pruned.

use image::reference::Wish;
use publisher::removal::{self, Pin, Wanted};
use publisher::report::Outcome::{Added, Unchanged, Updated};
use scenarios::repository::{assert_outcome, outcomes};

use crate::world::{AGES, DAY, World, layer};

#[test]
fn an_image_is_removed_and_put_back_within_its_grace() {
    let world = World::new();
    let image = world.push("a:1", &[layer(1), layer(2)]);
    world.convert(&["a:1"]);
    let before = world.look();
    let target = &world.site.target;

    let dry = removal::remove(target, &world.wish("a:1"), true).unwrap();
    assert_eq!((dry.images, dry.revision), (vec![world.path("a:1")], dry.revision_before));
    assert_eq!(world.look(), before);
    let done = removal::remove(target, &world.wish("a:1"), false).unwrap();
    assert_eq!(done.revision, done.revision_before + 1, "one publish");
    let look = world.look();
    assert!(look.links.is_empty() && look.statuses.is_empty());
    assert!(look.has_layer(image.layers[0]) && look.has_flat(image.config), "for those who run it");
    assert!(removal::remove(target, &world.wish("a:1"), false).is_err(), "it is gone already");
    assert!(world.site.tree(&format!("{}/lab", world.registry.address())).is_empty(), "no empty directories stay");
    world.collect();
    world.pass(29 * DAY);
    world.collect();

    // By its path as well as by its name.
    removal::undelete(target, &world.path("a:1"), None, false).unwrap();
    let look = world.look();
    assert_eq!((&look.links, &look.statuses), (&before.links, &before.statuses));
    assert!(look.condemned.is_empty());
    world.site.assert_sound();
    assert_eq!(outcomes(&world.site.convert(&[world.wish("a:1")])), [Unchanged], "nothing is missing of it");
    world.pass(AGES);
    world.collect();
    assert!(world.look().has_flat(image.config));

    removal::remove(target, &world.wish("a:1"), false).unwrap();
    world.collect();
    world.pass(30 * DAY);
    world.collect();
    let error = removal::undelete(target, &world.wish("a:1"), None, false).unwrap_err().to_string();
    assert!(error.contains("no earlier image"), "{error}");
    assert_outcome(&world.site.convert(&[world.wish("a:1")]).wishes[0], Added);
    world.site.assert_sound();
}

#[test]
fn a_tag_goes_back_to_what_it_meant_before() {
    let world = World::new();
    let target = &world.site.target;
    let pushed: Vec<_> = (1..=3)
        .map(|n| {
            let pushed = world.push("a:1", &[layer(n)]);
            world.convert(&["a:1"]);
            world.pass(DAY);
            pushed
        })
        .collect();
    let earlier = removal::earlier(target).unwrap();
    assert_eq!(earlier.iter().map(|v| v.parts.config).collect::<Vec<_>>(), [pushed[1].config, pushed[0].config]);
    let error = removal::undelete(target, &world.wish("a:1"), None, false).unwrap_err().to_string();
    assert!(error.contains("is published") && error.contains("--version"), "{error}");
    let digits = &pushed[0].manifest.hex()[..12];
    removal::undelete(target, &world.wish("a:1"), Some(&format!("sha256:{digits}")), false).unwrap();
    let look = world.look();
    assert_eq!(look.links[&world.path("a:1")], pushed[0].config.hex());
    assert_eq!(look.statuses[&world.path("a:1")].digest, pushed[0].manifest);
    let reasons: Vec<_> = removal::earlier(target).unwrap().into_iter().map(|v| v.reason).collect();
    assert_eq!(reasons, ["rolled back", "tag moved"]);
    world.site.assert_sound();
    assert!(removal::undelete(target, &world.wish("a:1"), Some("sha256:0123"), false).is_err());
    // The registry still says otherwise.
    assert_outcome(&world.site.convert(&[world.wish("a:1")]).wishes[0], Updated);
    assert_eq!(world.look().links[&world.path("a:1")], pushed[2].config.hex());
    world.site.assert_sound();
}

#[test]
fn prune_removes_what_no_wish_asks_for_in_one_publish() {
    let world = World::new();
    let names = ["a:1", "a:2", "b:1", "b:2", "c:1"];
    for (n, name) in names.iter().enumerate() {
        world.push(name, &[layer(n as u64)]);
    }
    world.convert(&names);
    let target = &world.site.target;
    removal::pin(target, &world.wish("c:1"), Pin::Set).unwrap();
    let error = removal::remove(target, &world.wish("c:1"), false).unwrap_err().to_string();
    assert!(error.contains("is pinned"), "{error}");
    let wishes = [world.wish("a:*"), world.wish("b:2")].map(|w| Wish::parse(&w).unwrap());
    let wanted = Wanted::new(&wishes).unwrap();
    let dry = removal::prune(target, &wanted, true).unwrap();
    assert_eq!((dry.images.clone(), dry.revision), (vec![world.path("b:1")], dry.revision_before));
    let done = removal::prune(target, &wanted, false).unwrap();
    assert_eq!((done.images, done.revision), (dry.images, done.revision_before + 1));
    let left: Vec<String> = world.look().links.into_keys().collect();
    assert_eq!(left, ["a:1", "a:2", "b:2", "c:1"].map(|n| world.path(n)));
    assert_eq!(removal::earlier(target).unwrap()[0].reason, "wish dropped");
    let again = removal::prune(target, &wanted, false).unwrap();
    assert_eq!(again.revision, again.revision_before, "nothing to do, nothing published");
    world.site.assert_sound();
}

#[test]
fn a_pin_follows_an_image_that_its_name_leads_to_again() {
    let world = World::new();
    let target = &world.site.target;
    let first = world.push("a:1", &[layer(0)]);
    world.convert(&["a:1"]);
    removal::pin(target, &world.wish("a:1"), Pin::Set).unwrap();
    world.push("a:1", &[layer(1)]);
    world.convert(&["a:1"]);
    assert_eq!(world.push("a:1", &[layer(0)]).manifest, first.manifest);
    world.convert(&["a:1"]);
    let error = removal::remove(target, &world.wish("a:1"), false).unwrap_err().to_string();
    assert!(error.contains("is pinned"), "{error}");
    removal::pin(target, &world.wish("a:1"), Pin::Remove).unwrap();
    removal::remove(target, &world.wish("a:1"), false).unwrap();
    world.site.assert_sound();
}
