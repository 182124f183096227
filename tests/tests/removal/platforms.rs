//! Removal of images for several platforms.

use publisher::images;
use publisher::removal::{self, Options, Wanted};
use publisher::report::Outcome::Updated;
use scenarios::image_builder::{Format, Image, Pushed, index_entry, media, push_index};
use scenarios::repository::{list, outcomes};
use scenarios::tree::What;

use crate::world::{DAY, World, at_once, layer};

const BOTH: &str = "platforms: [linux/amd64, linux/arm64]";

/// `lab/a:1` for two platforms that share layer 1, and the digest of the index.
fn push(world: &World, amd: u64, arm: u64) -> (Vec<Pushed>, String) {
    let of = |architecture: &str, own: u64| {
        Image::new([layer(1), layer(own)]).architecture(architecture).push_untagged(&world.registry, "lab/a")
    };
    let images = vec![of("amd64", amd), of("arm64", arm)];
    let entries: Vec<_> = images
        .iter()
        .zip(["linux/amd64", "linux/arm64/v8"])
        .map(|(pushed, platform)| index_entry(pushed, media::OCI_MANIFEST, platform))
        .collect();
    let (digest, _) = push_index(&world.registry, "lab/a", "1", Format::Oci, &entries);
    (images, digest.to_string())
}

fn entry(world: &World, options: &str) -> String {
    format!("input: [{{image: '{}', {options}}}]\n", world.wish("a:1"))
}

fn names(world: &World) -> Vec<String> {
    let tree = world.site.tree("");
    let place = |path: &str| {
        let path = path.replace(&world.path("a:1"), "NAME");
        path.ends_with("NAME").then_some(path)
    };
    let links = tree.iter().filter(|(_, node)| matches!(node.what, What::Symlink(_)));
    links.filter_map(|(path, _)| place(std::str::from_utf8(path).unwrap())).collect()
}

#[test]
fn a_platform_that_no_list_asks_for_goes_and_shared_layers_stay() {
    let world = World::new();
    let target = &world.site.target;
    let (images, _) = push(&world, 2, 3);
    world.site.convert_list(&entry(&world, BOTH));
    let all = [".multiarch/amd64/NAME", ".multiarch/arm64:v8/NAME", "NAME"];
    assert_eq!(names(&world), all);
    let prune = |options: &str| {
        let wanted = Wanted::of(&list(&entry(&world, options)).wishes).unwrap();
        removal::prune(target, &wanted, false).unwrap().images
    };
    assert_eq!(prune(BOTH), Vec::<String>::new());
    assert_eq!(prune("owner: x"), Vec::<String>::new(), "a wish that names no platform takes all");
    assert_eq!(prune("platforms: linux/amd64").len(), 2, "the platform, and the second link of the other one");
    assert_eq!(names(&world), ["NAME"]);
    let tree = world.site.tree("");
    assert!(!tree.contains_key(&b".multiarch/aarch64"[..]) && !tree.contains_key(&b".multiarch/x86_64"[..]));
    let earlier = removal::earlier(target).unwrap();
    assert_eq!(earlier.iter().map(|v| v.parts.config).collect::<Vec<_>>(), [images[1].config]);
    assert_eq!(earlier[0].owner.platform.as_ref().unwrap().as_str(), "arm64:v8");
    assert!(removal::earlier_to_text(&earlier).starts_with(".multiarch/arm64:v8/"));
    let collected = world.collect_with(&at_once());
    assert_eq!(collected.swept.len(), 2, "its own layer and its flat");
    let look = world.look();
    assert!(look.has_layer(images[0].layers[0]) && look.has_layer(images[0].layers[1]));
    assert!(!look.has_layer(images[1].layers[1]) && !look.has_flat(images[1].config));
    world.site.assert_sound();
}

#[test]
fn a_removed_image_goes_and_comes_back_on_all_platforms() {
    let world = World::new();
    let target = &world.site.target;
    let (images, _) = push(&world, 2, 3);
    world.site.convert_list(&entry(&world, BOTH));
    let before = images::list(target).unwrap();
    let all = names(&world);
    removal::remove(target, &world.wish("a:1"), false).unwrap();
    assert_eq!(names(&world), Vec::<String>::new());
    assert_eq!(images::list(target).unwrap(), []);
    world.collect();
    let look = world.look();
    assert!(images.iter().all(|image| look.has_flat(image.config)), "they wait for their grace");
    world.site.assert_sound();
    removal::undelete(target, &world.wish("a:1"), None, false).unwrap();
    assert_eq!((names(&world), images::list(target).unwrap()), (all, before));
    world.site.assert_sound();
}

#[test]
fn a_tag_that_moves_leaves_an_earlier_image_on_each_platform() {
    let world = World::new();
    let target = &world.site.target;
    let (old, _) = push(&world, 2, 3);
    world.site.convert_list(&entry(&world, BOTH));
    world.pass(DAY);
    let (new, _) = push(&world, 4, 3);
    assert_eq!(outcomes(&world.site.convert_list(&entry(&world, BOTH)))[0], Updated);
    let earlier = removal::earlier(target).unwrap();
    let configs: Vec<_> = earlier.iter().map(|v| v.parts.config).collect();
    assert_eq!(configs, [old[0].config], "the image for arm64 is the same as before");
    let (newer, _) = push(&world, 5, 6);
    world.pass(DAY);
    assert_eq!(outcomes(&world.site.convert_list(&entry(&world, BOTH))), [Updated; 2]);
    assert_eq!(removal::earlier(target).unwrap().len(), 3);
    // Nobody needs what only earlier images had.
    world.collect_with(&Options { keep_versions: 1, ..at_once() });
    let look = world.look();
    for image in [&new[0], &new[1], &newer[0], &newer[1]] {
        assert!(look.has_flat(image.config) && image.layers.iter().all(|l| look.has_layer(*l)), "one is kept");
    }
    assert!(!look.has_flat(old[0].config) && !look.has_layer(old[0].layers[1]));
    world.site.assert_sound();
    let gone = old[0].manifest.to_string();
    assert!(removal::undelete(target, &world.wish("a:1"), Some(&gone), false).is_err());
    let digest = new[1].manifest.to_string();
    removal::undelete(target, &world.wish("a:1"), Some(&digest), false).unwrap();
    let listed = images::list(target).unwrap();
    let digests: Vec<_> = listed.iter().map(|i| i.digest.clone().unwrap()).collect();
    assert_eq!(digests, [digest, newer[0].manifest.to_string()], "one platform goes back by its own digest");
    world.site.assert_sound();
}

#[test]
fn the_digest_of_an_index_means_all_of_its_platforms() {
    let world = World::new();
    let target = &world.site.target;
    let (old, index) = push(&world, 2, 3);
    world.site.convert_list(&entry(&world, BOTH));
    world.pass(DAY);
    push(&world, 4, 5);
    world.site.convert_list(&entry(&world, BOTH));
    removal::undelete(target, &world.wish("a:1"), Some(&index), false).unwrap();
    let mut configs: Vec<_> = images::list(target).unwrap().into_iter().map(|i| i.config).collect();
    configs.sort();
    let mut expected: Vec<_> = old.iter().map(|image| image.config.to_string()).collect();
    expected.sort();
    assert_eq!(configs, expected);
    world.site.assert_sound();
}

#[test]
fn a_default_platform_that_another_one_follows_keeps_its_place_and_its_layers() {
    let world = World::new();
    let target = &world.site.target;
    let (images, _) = push(&world, 2, 3);
    world.site.convert_list(&entry(&world, BOTH));
    world.site.convert_list(&entry(&world, "platforms: linux/arm64"));
    let listed: Vec<_> = images::list(target).unwrap().into_iter().map(|i| (i.path, i.config)).collect();
    let amd = format!(".multiarch/amd64/{}", world.path("a:1"));
    let expected = [(amd.clone(), images[0].config.to_string()), (world.path("a:1"), images[1].config.to_string())];
    assert_eq!(listed, expected, "it stays until it is pruned, as every platform does");
    world.collect_with(&at_once());
    let look = world.look();
    assert!(images[0].layers.iter().all(|layer| look.has_layer(*layer)) && look.has_flat(images[0].config));
    assert_eq!(look.links[&amd], images[0].config.hex());
    let wanted = Wanted::of(&list(&entry(&world, "platforms: linux/arm64")).wishes).unwrap();
    removal::prune(target, &wanted, false).unwrap();
    assert_eq!(names(&world), ["NAME"]);
    world.collect_with(&at_once());
    assert!(!world.look().has_flat(images[0].config));
    world.site.assert_sound();
}

#[test]
fn a_link_below_multiarch_follows_what_is_put_back_at_the_plain_path() {
    let world = World::new();
    let target = &world.site.target;
    let (old, _) = push(&world, 2, 3);
    world.site.convert_list(&entry(&world, "platforms: linux/amd64"));
    let (new, _) = push(&world, 4, 5);
    world.site.convert_list(&entry(&world, BOTH));
    let digest = old[0].manifest.to_string();
    removal::undelete(target, &world.wish("a:1"), Some(&digest), false).unwrap();
    let look = world.look();
    let links = [world.path("a:1"), format!(".multiarch/amd64/{}", world.path("a:1"))];
    assert_eq!(links.map(|link| look.links[&link].clone()), [old[0].config.hex(), old[0].config.hex()]);

    // Another platform at the plain path: that of now keeps its place, with records.
    world.site.convert_list(&entry(&world, "platforms: [linux/arm64, linux/amd64]"));
    removal::undelete(target, &world.wish("a:1"), Some(&digest), false).unwrap();
    let listed: Vec<_> = images::list(target).unwrap().into_iter().map(|i| (i.path, i.config)).collect();
    let arm = format!(".multiarch/arm64:v8/{}", world.path("a:1"));
    assert_eq!(listed, [(arm, new[1].config.to_string()), (world.path("a:1"), old[0].config.to_string())]);
    world.site.assert_sound();
}

#[test]
fn an_image_that_runs_on_the_wished_platform_goes_and_comes_back_in_the_directory_of_the_wish() {
    let world = World::new();
    let target = &world.site.target;
    let mut image = Image::new([layer(1)]).architecture("arm");
    image.config["variant"] = "v6".into();
    let pushed = image.push_untagged(&world.registry, "lab/a");
    push_index(
        &world.registry,
        "lab/a",
        "1",
        Format::Oci,
        &[index_entry(&pushed, media::OCI_MANIFEST, "linux/arm/v6")],
    );
    world.site.convert_list(&entry(&world, "platforms: linux/arm/v7, plain_path: variant"));
    let all = [".multiarch/arm:v7/NAME", "NAME"];
    assert_eq!(names(&world), all);
    removal::remove(target, &world.wish("a:1"), false).unwrap();
    assert_eq!(names(&world), Vec::<String>::new());
    removal::undelete(target, &world.wish("a:1"), None, false).unwrap();
    assert_eq!(names(&world), all);
    world.site.assert_sound();
}

#[test]
fn a_plain_path_by_architecture_keeps_its_default_platform() {
    let world = World::new();
    push(&world, 2, 3);
    world.site.convert_list(&entry(&world, &format!("{BOTH}, plain_path: variant")));
    // The list asks for another default platform, and nothing was converted since.
    let options = "platforms: linux/arm64, plain_path: variant";
    let wanted = Wanted::of(&list(&entry(&world, options)).wishes).unwrap();
    removal::prune(&world.site.target, &wanted, false).unwrap();
    assert_eq!(names(&world), [".multiarch/amd64/NAME", ".multiarch/arm64:v8/NAME", "NAME"]);
    world.site.convert_list(&entry(&world, options));
    removal::prune(&world.site.target, &wanted, false).unwrap();
    assert_eq!(names(&world), [".multiarch/arm64:v8/NAME", "NAME"]);
    world.site.assert_sound();
}

#[test]
fn the_last_images_come_back_and_not_what_their_places_had_before() {
    let world = World::new();
    let target = &world.site.target;
    let (images, _) = push(&world, 2, 3);
    world.site.convert_list(&entry(&world, "platforms: [linux/arm64, linux/amd64]"));
    world.pass(DAY);
    world.site.convert_list(&entry(&world, BOTH));
    world.pass(DAY);
    removal::remove(target, &world.wish("a:1"), false).unwrap();
    removal::undelete(target, &world.wish("a:1"), None, false).unwrap();
    let listed: Vec<_> = images::list(target).unwrap().into_iter().map(|i| (i.path, i.config)).collect();
    let arm = format!(".multiarch/arm64:v8/{}", world.path("a:1"));
    assert_eq!(listed, [(arm, images[1].config.to_string()), (world.path("a:1"), images[0].config.to_string())]);
    world.site.assert_sound();
}
