//! Images that are broken, hostile or out of bounds: each has a clear error or a documented result, nothing is
//! published by halves, and the other images of the same pass are published.

use std::collections::BTreeSet;

use cvmfs::entry::Entry;
use cvmfs::path::RepoPath;
use image::digest::{DiffId, Digest, LayerDigest, ManifestDigest};
use publisher::convert::Request;
use publisher::report::Outcome::{Added, Failed};
use publisher::target::file_meta;
use publisher::wishlist::WishList;
use registry::testing::{Fault, TestRegistry};
use registry::{Credential, Credentials};
use scenarios::image_builder::{
    Format, Image, Kind, Layer, Member, Packing, dir, file, hardlink, index_entry, media, noise, opaque, pax_record,
    push_attestation, push_index, special, symlink, tar, whiteout,
};
use scenarios::naive;
use scenarios::repository::{Site, assert_flat, assert_outcome, flat_path, layer_path, outcomes, public, wish};
use scenarios::tree::{Tree, What};
use serde_json::{Value, json};

/// An image that must not be published: its name, what is pushed, and what the error has to say.
struct Case {
    name: &'static str,
    says: &'static [&'static str],
    push: fn(&TestRegistry, &str),
}

fn case(name: &'static str, says: &'static [&'static str], push: fn(&TestRegistry, &str)) -> Case {
    Case { name, says, push }
}

fn push(registry: &TestRegistry, tag: &str, layer: Layer) {
    Image::new([layer]).push(registry, "lab/bad", tag);
}

fn push_members(registry: &TestRegistry, tag: &str, members: &[Member]) {
    push(registry, tag, Layer::new(members, Packing::Gzip));
}

fn push_manifest(registry: &TestRegistry, tag: &str, change: impl FnOnce(&mut Value)) {
    let image = honest();
    image.push_blobs(registry);
    let mut manifest = image.manifest();
    change(&mut manifest);
    image.push_manifest(registry, "lab/bad", tag, &manifest);
}

fn honest() -> Image {
    Image::of(&[&[file("honest", "content")]])
}

/// Runs a pass over the cases with honest images before, between and after them; the cases have to fail as they
/// say, the honest images have to be published, and nothing of the bad ones may be seen.
fn run(site: &Site, registry: &TestRegistry, cases: &[Case]) {
    let good = |n: usize| {
        let image = Image::of(&[&[file("good", noise(n as u64, 100))]]);
        image.push(registry, "lab/good", &n.to_string());
        wish(registry, &format!("lab/good:{n}"))
    };
    let mut wishes = vec![good(0)];
    for (n, case) in cases.iter().enumerate() {
        let tag = format!("case{n}");
        (case.push)(registry, &tag);
        wishes.push(wish(registry, &format!("lab/bad:{tag}")));
        if n == cases.len() / 2 {
            wishes.push(good(1));
        }
    }
    wishes.push(good(2));
    let before = site.revision();
    let report = site.convert(&wishes);
    let (bad, good): (Vec<_>, Vec<_>) = report.wishes.iter().partition(|w| w.wish.contains("/lab/bad:"));
    let mut faults = String::new();
    for (case, wish) in cases.iter().zip(&bad) {
        let error = wish.error.as_deref().unwrap_or("no error");
        let is_telling = case.says.iter().all(|says| error.contains(says));
        if wish.outcome != Failed || !is_telling {
            faults += &format!("{}: {:?}, \"{error}\"; expected {:?}\n", case.name, wish.outcome, case.says);
        }
    }
    assert!(faults.is_empty(), "not as expected:\n{faults}");
    assert_eq!(bad.len(), cases.len());
    for wish in &good {
        assert_outcome(wish, Added);
    }
    assert!(report.revision > Some(before), "the good images are published");
    let tree = site.tree("");
    let names: Vec<String> = tree.keys().map(|p| String::from_utf8_lossy(p).into_owned()).collect();
    assert!(!names.iter().any(|n| n.contains("lab/bad")), "nothing of a bad image is visible");
    let count = |top: &str, depth: usize| {
        // Beside a flat is its cover.
        let is_part = |n: &&String| n.starts_with(top) && n.matches('/').count() == depth && !n.contains("/.");
        names.iter().filter(is_part).count()
    };
    assert_eq!((count(".flat/", 2), count(".layers/", 2)), (3, 3), "only the good images have layers and flats");
    assert_eq!(count(".index/manifest/", 3), 3);
    site.assert_sound();

    // The same once more: what failed fails again, nothing is published.
    let revision = site.revision();
    let again = site.convert(&wishes);
    assert_eq!(again.wishes.iter().filter(|w| w.outcome == Failed).count(), cases.len());
    assert_eq!((again.revision, site.revision()), (Some(revision), revision));
}

#[test]
fn refuses_blobs_that_are_not_what_they_should_be() {
    let cases = [
        case("truncated blob", &["layer sha256:", "2000 bytes instead of"], |registry, tag| {
            let mut layer = Layer::new(&[file("f", noise(1, 5000))], Packing::Gzip);
            layer.blob.truncate(2000);
            push(registry, tag, layer);
        }),
        case("longer blob", &["layer sha256:", "bytes instead of"], |registry, tag| {
            let mut layer = Layer::new(&[file("f", noise(2, 5000))], Packing::Gzip);
            layer.blob.extend([0; 100]);
            push(registry, tag, layer);
        }),
        case("line always cut", &["layer sha256:", "of"], |registry, tag| {
            let layer = Layer::new(&[file("f", noise(3, 50_000))], Packing::Gzip);
            registry.fault(Fault::cut_after(0).on(&layer.digest.to_string()).always());
            push(registry, tag, layer);
        }),
        case("wrong digest", &["layer sha256:", "digest"], |registry, tag| {
            let mut layer = Layer::new(&[file("f", noise(4, 5000))], Packing::Plain);
            layer.blob[600] ^= 1;
            push(registry, tag, layer);
        }),
        case("wrong diff ID", &["layer sha256:", "config says"], |registry, tag| {
            push(registry, tag, Layer { diff_id: DiffId::of(b"else"), ..Layer::new(&[file("f", "6")], Packing::Gzip) });
        }),
        case("missing blob", &["layer sha256:", "not found"], |registry, tag| {
            let layer = Layer::new(&[file("f", "missing")], Packing::Gzip);
            registry.fault(Fault::status(404).on(&layer.digest.to_string()).always());
            push(registry, tag, layer);
        }),
        case("no archive at all", &["neither a tar"], |registry, tag| {
            push(registry, tag, Layer::of_blob(b"<html>please log in</html>".repeat(100), Packing::Plain));
        }),
        case("no archive within gzip", &["not a tar"], |registry, tag| {
            push(registry, tag, Layer::of_tar(&noise(5, 4000), Packing::Gzip));
        }),
        case("gzip by its magic only", &["layer sha256:", "deflate"], |registry, tag| {
            let blob = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &noise(6, 3000)].concat();
            push(registry, tag, Layer::of_blob(blob, Packing::Gzip));
        }),
        case("truncated gzip", &["layer sha256:"], |registry, tag| {
            let whole = Layer::new(&[file("f", noise(7, 5000))], Packing::Gzip);
            let blob = whole.blob[..3000].to_vec();
            push(registry, tag, Layer { diff_id: whole.diff_id, ..Layer::of_blob(blob, Packing::Gzip) });
        }),
        case("gzip with a wrong checksum", &["layer sha256:"], |registry, tag| {
            let whole = Layer::new(&[file("f", noise(8, 5000))], Packing::Gzip);
            let mut blob = whole.blob.clone();
            let at = blob.len() - 6;
            blob[at] ^= 1;
            push(registry, tag, Layer { diff_id: whole.diff_id, ..Layer::of_blob(blob, Packing::Gzip) });
        }),
        case("truncated zstd", &["layer sha256:"], |registry, tag| {
            let whole = Layer::new(&[file("f", noise(9, 5000))], Packing::Zstd);
            let blob = whole.blob[..3000].to_vec();
            push(registry, tag, Layer { diff_id: whole.diff_id, ..Layer::of_blob(blob, Packing::Zstd) });
        }),
        case("truncated tar", &["layer sha256:", "ends"], |registry, tag| {
            let tar = tar(&[file("f", noise(10, 5000))]);
            push(registry, tag, Layer::of_tar(&tar[..2000], Packing::Gzip));
        }),
        case("tar with a broken header", &["layer sha256:", "checksum"], |registry, tag| {
            let mut tar = tar(&[file("f", "1"), file("g", "2")]);
            tar[1030] ^= 1;
            push(registry, tag, Layer::of_tar(&tar, Packing::Gzip));
        }),
        case("config of another digest", &["has digest", "instead of"], |registry, tag| {
            let image = honest();
            let pushed = image.push(registry, "lab/bad", tag);
            let mut other = pushed.config_bytes;
            other[5] ^= 1;
            let change = |manifest: &mut Value| {
                let digest = Digest::of(b"config of another digest");
                registry.put_false_blob(digest, other.clone());
                manifest["config"]["digest"] = digest.to_string().into();
            };
            push_manifest(registry, tag, change);
        }),
    ];
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    run(&site, &registry, &cases);
}

#[test]
fn refuses_documents_that_describe_no_image_of_ours() {
    let cases = [
        case(
            "list without our platform",
            &["no image for linux/amd64", "linux/arm64/v8, linux/s390x"],
            |registry, tag| {
                let pushed = honest().push_untagged(registry, "lab/bad");
                let entries = ["linux/arm64/v8", "linux/s390x"].map(|p| index_entry(&pushed, media::OCI_MANIFEST, p));
                push_index(registry, "lab/bad", tag, Format::Oci, &entries);
            },
        ),
        case("only attestations", &["no image for linux/amd64", "no images at all"], |registry, tag| {
            let pushed = honest().push_untagged(registry, "lab/bad");
            let entry = push_attestation(registry, "lab/bad", &pushed);
            push_index(registry, "lab/bad", tag, Format::Oci, &[entry]);
        }),
        case("empty list", &["no image for linux/amd64"], |registry, tag| {
            push_index(registry, "lab/bad", tag, Format::Docker, &[]);
        }),
        case("index within an index", &["index"], |registry, tag| {
            let pushed = honest().push_untagged(registry, "lab/bad");
            let entry = index_entry(&pushed, media::OCI_MANIFEST, "linux/amd64");
            let (inner, bytes) = push_index(registry, "lab/bad", "inner", Format::Oci, &[entry]);
            let entry = json!({
                "mediaType": media::OCI_INDEX, "size": bytes.len(), "digest": inner.to_string(),
                "platform": {"os": "linux", "architecture": "amd64"},
            });
            push_index(registry, "lab/bad", tag, Format::Oci, &[entry]);
        }),
        case("image of another platform", &["linux/riscv64", "linux/amd64"], |registry, tag| {
            honest().architecture("riscv64").push(registry, "lab/bad", tag);
        }),
        case("list that lies about the platform", &["linux/arm64", "linux/amd64"], |registry, tag| {
            let pushed = honest().architecture("arm64").push_untagged(registry, "lab/bad");
            let entry = index_entry(&pushed, media::OCI_MANIFEST, "linux/amd64");
            push_index(registry, "lab/bad", tag, Format::Oci, &[entry]);
        }),
        case("layer of an unknown media type", &["layer 1", "application/x-squashfs"], |registry, tag| {
            push_manifest(registry, tag, |m| m["layers"][0]["mediaType"] = "application/x-squashfs".into());
        }),
        case("encrypted layer", &["encrypted"], |registry, tag| {
            let media_type = format!("{}+gzip+encrypted", media::OCI_LAYER);
            push_manifest(registry, tag, |m| m["layers"][0]["mediaType"] = media_type.into());
        }),
        case("unknown media type of the manifest", &["application/x-unknown"], |registry, tag| {
            push_manifest(registry, tag, |m| m["mediaType"] = "application/x-unknown".into());
        }),
        case("artifact", &["artifact", "chart"], |registry, tag| {
            push_manifest(registry, tag, |m| {
                m["config"]["mediaType"] = "application/vnd.cncf.helm.chart.config.v1+json".into();
            });
        }),
        case("schema 1", &["schema 1"], |registry, tag| {
            let manifest = json!({
                "schemaVersion": 1, "name": "lab/bad", "tag": tag, "architecture": "amd64",
                "fsLayers": [{"blobSum": Digest::of(b"").to_string()}], "history": [{"v1Compatibility": "{}"}],
            });
            let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
            registry.put_manifest("lab/bad", tag, media_type, manifest.to_string());
        }),
        case("both manifest and index", &["both a manifest and an index"], |registry, tag| {
            push_manifest(registry, tag, |m| m["manifests"] = json!([]));
        }),
        case("no JSON", &["manifest can't be read"], |registry, tag| {
            registry.put_manifest("lab/bad", tag, media::OCI_MANIFEST, "<html>");
        }),
        case("digest of an unknown algorithm", &["sha512"], |registry, tag| {
            push_manifest(registry, tag, |m| m["layers"][0]["digest"] = format!("sha512:{}", "ab".repeat(64)).into());
        }),
        case("layers that the config doesn't list", &["1 layers", "0 diff IDs"], |registry, tag| {
            let mut image = honest();
            image.config["rootfs"] = json!({"type": "layers", "diff_ids": []});
            image.push(registry, "lab/bad", tag);
        }),
        case("more than 500 layers", &["501 layers", "500"], |registry, tag| {
            let layer = || Layer::new(&[file("many", "many")], Packing::Gzip);
            Image::new(std::iter::repeat_with(layer).take(501)).push(registry, "lab/bad", tag);
        }),
        case("manifest above 4 MiB", &["4194304"], |registry, tag| {
            push_manifest(registry, tag, |m| m["annotations"] = json!({"long": "x".repeat(4 << 20)}));
        }),
        case("config above 4 MiB", &["4194304"], |registry, tag| {
            let mut image = honest();
            image.config["comment"] = "x".repeat(4 << 20).into();
            image.push(registry, "lab/bad", tag);
        }),
        case("manifest of another digest", &["digest"], |registry, tag| {
            let pushed = honest().push(registry, "lab/bad", tag);
            let digest = ManifestDigest::of(b"manifest of another digest");
            registry.put_false_manifest(
                "lab/bad",
                &digest.to_string(),
                media::OCI_MANIFEST,
                pushed.manifest_bytes.clone(),
            );
            let mut entry = index_entry(&pushed, media::OCI_MANIFEST, "linux/amd64");
            entry["digest"] = digest.to_string().into();
            push_index(registry, "lab/bad", tag, Format::Oci, &[entry]);
        }),
        case("missing tag", &["manifest case19 not found"], |_, _| {}),
    ];
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    run(&site, &registry, &cases);
}

#[test]
fn refuses_archives_that_break_the_rules() {
    /// A member whose PAX header is written by the test.
    fn with_pax(records: &[u8], member: &Member) -> Layer {
        let header = tar(&[file("pax", records)]);
        let mut header = header[..header.len() - 1024].to_vec();
        // The type says that it belongs to what follows; the checksum is one over all bytes.
        header[156] = b'x';
        let sum: u32 = header[..512]
            .iter()
            .enumerate()
            .map(|(n, b)| if (148..156).contains(&n) { 32 } else { u32::from(*b) })
            .sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Layer::of_tar(&[header, tar(std::slice::from_ref(member))].concat(), Packing::Gzip)
    }
    let cases = [
        case("..", &["layer sha256:", "\"../evil\"", ".."], |registry, tag| {
            push_members(registry, tag, &[file("../evil", "")]);
        }),
        case(".. in the middle", &["a/../../evil"], |registry, tag| {
            push_members(registry, tag, &[file("a/../../evil", "")]);
        }),
        case(".. in a hard link", &["../../etc/passwd"], |registry, tag| {
            push_members(registry, tag, &[hardlink("evil", "../../etc/passwd")]);
        }),
        case(
            "hard link to nothing",
            &["\"evil\"", "\"etc/none\"", "neither in this layer nor in those below"],
            |registry, tag| {
                push_members(registry, tag, &[hardlink("evil", "/etc/none")]);
            },
        ),
        case("hard link to a directory", &["a directory"], |registry, tag| {
            push_members(registry, tag, &[dir("d"), hardlink("evil", "d")]);
        }),
        case("a loop of links as parent", &["symbolic links"], |registry, tag| {
            push_members(registry, tag, &[symlink("a", "b"), symlink("b", "a"), file("a/x", "")]);
        }),
        case("name of 256 bytes", &["255"], |registry, tag| push_members(registry, tag, &[file("n".repeat(256), "")])),
        case("path that is too long", &["too long", "4095"], |registry, tag| {
            push_members(registry, tag, &[file("abcdefg/".repeat(600), "")]);
        }),
        case("NUL in a name", &["NUL"], |registry, tag| {
            push(registry, tag, with_pax(&pax_record(b"path", b"a\0b"), &file("x", "")));
        }),
        case("link target that is too long", &["target"], |registry, tag| {
            push_members(registry, tag, &[symlink("l", "t".repeat(5000))]);
        }),
        case("malformed whiteout", &["whiteout"], |registry, tag| push_members(registry, tag, &[file("a/.wh.", "")])),
        case("whiteout of ..", &["whiteout"], |registry, tag| push_members(registry, tag, &[file("a/.wh...", "")])),
        case("something below a whiteout", &["whiteout"], |registry, tag| {
            push_members(registry, tag, &[file(".wh.a/b", "")]);
        }),
        case("a file as root", &["root"], |registry, tag| push_members(registry, tag, &[file(".", "")])),
        case(
            "PAX header above 1 MiB",
            &["more than 1048576 bytes in an extended header", "--max-pax-header"],
            |registry, tag| {
                push_members(registry, tag, &[file("f", "").xattr("user.long", vec![b'x'; 1 << 20])]);
            },
        ),
        case("PAX records that lie about their length", &["header"], |registry, tag| {
            push(registry, tag, with_pax(b"9999 path=x\n", &file("x", "")));
        }),
        case("bomb of zeros", &["expands more than 1000 times", "--max-expansion"], |registry, tag| {
            push(registry, tag, Layer::of_tar(&tar(&[file("zeros", vec![1; 100 << 20])]), Packing::Zstd));
        }),
        case("zstd window above 64 MiB", &["layer sha256:", "memory"], |registry, tag| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(27).unwrap();
            std::io::Write::write_all(&mut encoder, &tar(&[file("f", "small")])).unwrap();
            push(registry, tag, Layer::of_blob(encoder.finish().unwrap(), Packing::Zstd));
        }),
    ];
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    run(&site, &registry, &cases);
}

#[test]
fn limits_are_those_of_the_operator() {
    let cases = [
        case("too large", &["more than 1048576 bytes", "--max-layer-size"], |registry, tag| {
            push_members(registry, tag, &[file("f", noise(1, 2 << 20))]);
        }),
        case("a file that claims to be large", &["more than 1048576 bytes", "--max-layer-size"], |registry, tag| {
            let mut tar = tar(&[file("f", "")]);
            tar[124..136].copy_from_slice(b"77777777777\0");
            let sum: u32 = tar[..512]
                .iter()
                .enumerate()
                .map(|(n, b)| if (148..156).contains(&n) { 32 } else { u32::from(*b) })
                .sum();
            tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            push(registry, tag, Layer::of_tar(&tar, Packing::Gzip));
        }),
        case("too many entries", &["more than 100 entries", "--max-entries"], |registry, tag| {
            let members: Vec<Member> = (0..101).map(|n| file(format!("f{n}"), "")).collect();
            push_members(registry, tag, &members);
        }),
        case("too many layers", &["4 layers", "--max-layers"], |registry, tag| {
            Image::new((0..4).map(|n| Layer::new(&[file(format!("{n}"), "")], Packing::Gzip)))
                .push(registry, "lab/bad", tag);
        }),
        case("PAX header", &["more than 2048 bytes", "--max-pax-header"], |registry, tag| {
            push_members(registry, tag, &[file("f", "").xattr("user.x", vec![b'x'; 3000])]);
        }),
    ];
    let (registry, mut site) = (TestRegistry::spawn(), Site::new());
    site.options.limits.max_layers = 3;
    let limits = &mut site.options.limits.layer;
    (limits.max_layer_size, limits.max_entries, limits.max_pax_header) = (1 << 20, 100, 2048);
    run(&site, &registry, &cases);
}

fn lost(tree: &Tree, layer: LayerDigest) -> Vec<String> {
    let path = format!("{}/.metadata/format.json", layer_path(layer));
    let What::File(bytes) = &tree[path.as_bytes()].what else { panic!("{path} is no file") };
    let record: Value = serde_json::from_slice(bytes).unwrap();
    let mut lost: Vec<String> = record["lost"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| format!("{}: {}", l["path"].as_str().unwrap(), l["what"].as_str().unwrap()))
        .collect();
    lost.sort();
    lost
}

#[test]
fn what_a_repository_cannot_hold_is_left_out_and_recorded() {
    let many = (0..300).fold(file("many", ""), |member, n| member.xattr(format!("user.n{n:03}"), "v"));
    let members = [
        file("long", "").xattr("user.fits", vec![b'v'; 255]).xattr("user.long", vec![b'v'; 256]),
        file("name", "").xattr(format!("user.{}", "n".repeat(251)), "v"),
        many,
        file("n".repeat(255), "longest name"),
        dir("d"),
        file("d/.cvmfscatalog", "a catalog?"),
        file(".cvmfscatalog", "a catalog?"),
        file("d/.cvmfsautocatalog", ""),
        dir("e/.cvmfscatalog"),
        file("e/.cvmfscatalog/x", ""),
        symlink("variable", "$(HOME)/x"),
        file("owner", "").owner(5_000_000_000, 0),
        file("future", "").mtime(i64::from(u32::MAX) * 1000),
    ];
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = Image::of(&[&members]).push(&registry, "lab/x", "1");
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:1")]).wishes[0], Added);
    site.assert_sound();
    let tree = site.tree("");
    let mut expected: Vec<String> = (255..300).map(|n| format!("many: xattr user.n{n}")).collect();
    expected.extend([
        ".cvmfscatalog: reserved name .cvmfscatalog".to_owned(),
        "d/.cvmfsautocatalog: reserved name .cvmfsautocatalog".to_owned(),
        "d/.cvmfscatalog: reserved name .cvmfscatalog".to_owned(),
        "e/.cvmfscatalog/x: reserved name x".to_owned(),
        "e/.cvmfscatalog: reserved name .cvmfscatalog".to_owned(),
        "future: mtime 4294967295000".to_owned(),
        "long: xattr user.long".to_owned(),
        format!("name: xattr user.{}", "n".repeat(251)),
        "owner: uid 5000000000".to_owned(),
        "variable: link target $(HOME)/x".to_owned(),
    ]);
    expected.sort();
    assert_eq!(lost(&tree, pushed.layers[0]), expected);

    let mut flat = naive::unpack([&members[..]]);
    flat.retain(|path, _| !path.windows(6).any(|w| w == b".cvmfs"));
    flat.remove(&b"e"[..]);
    flat.get_mut(&b"long"[..]).unwrap().xattrs.remove(&b"user.long"[..]);
    flat.get_mut(&b"name"[..]).unwrap().xattrs.clear();
    flat.get_mut(&b"many"[..]).unwrap().xattrs.retain(|name, _| name.as_slice() < b"user.n255".as_slice());
    flat.get_mut(&b"owner"[..]).unwrap().uid = 65534;
    flat.get_mut(&b"future"[..]).unwrap().mtime = 253_402_300_799;
    assert_flat(&site, pushed.config, &flat, "what can be held");
    assert!(flat.contains_key("n".repeat(255).as_bytes()));
}

#[test]
fn links_and_absolute_names_stay_inside_the_image() {
    let lower = [
        dir("etc"),
        file("etc/passwd", "of the image"),
        symlink("up", "../../../../../etc"),
        symlink("host", "/etc"),
        symlink("etc/evil", "/../../../tmp"),
    ];
    let upper = [
        file("/absolute/name", "inside"),
        file("up/by-dots", "inside"),
        file("host/by-root", "inside"),
        file("etc/evil/deep", "inside"),
        hardlink("link", "/etc/passwd"),
        hardlink("other", "host/passwd"),
        whiteout("up/none"),
    ];
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = Image::of(&[&lower, &upper]).push(&registry, "lab/x", "1");
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:1")]).wishes[0], Added);
    let expected = naive::unpack([&lower[..], &upper[..]]);
    for path in ["absolute/name", "etc/by-dots", "etc/by-root", "tmp/deep", "link", "other"] {
        assert!(expected.contains_key(path.as_bytes()), "{path}");
    }
    assert_flat(&site, pushed.config, &expected, "the image");
    let tops: BTreeSet<Vec<u8>> = site.tree("").keys().filter(|p| !p.contains(&b'/')).cloned().collect();
    let host = registry.address().to_string();
    let expected = ["", ".flat", ".index", ".layers", ".metadata", &host].map(|t| t.as_bytes().to_vec());
    assert_eq!(tops, expected.into(), "nothing else is in the repository");
    site.assert_sound();
}

#[test]
fn a_layer_never_answers_for_a_digest_that_is_not_its_own() {
    // The blob is honest and known; a config that claims another diff ID for it would have it indexed under that.
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let layer = || Layer::new(&[file("f", "f")], Packing::Gzip);
    let victim = DiffId::of(b"the layer of somebody else");
    Image::new([layer()]).push(&registry, "lab/good", "1");
    Image::new([Layer { diff_id: victim, ..layer() }]).push(&registry, "lab/bad", "1");
    let (good, bad) = (wish(&registry, "lab/good:1"), wish(&registry, "lab/bad:1"));
    // Unknown to both, known to both.
    for wishes in [[&bad, &good], [&bad, &good]] {
        let report = site.convert(&wishes.map(String::clone));
        assert_ne!(report.wishes[1].outcome, Failed, "the lie is a matter of its own image only");
        let bad = &report.wishes[0];
        assert_outcome(bad, Failed);
        let error = bad.error.as_deref().unwrap();
        assert!(error.contains("config says") && error.contains(&victim.to_string()), "{error}");
        let tree = site.tree(".index");
        assert!(!tree.keys().any(|p| p.ends_with(victim.hex().as_bytes())), "the index has the false digest");
    }
    assert_eq!(site.revision(), 1);
    site.assert_sound();
}

#[test]
fn wishes_never_land_on_what_belongs_to_the_repository() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    honest().push(&registry, "lab/x", "1");
    let good = wish(&registry, "lab/x:1");
    let bad = [
        "https://.flat/library/x:1",
        "https://.layers/library/x:1",
        "https://podmanStore/library/x:1",
        "https://podmanstore/library/x:1",
        "https://registry.example.org/../.flat/x:1",
        "https://registry.example.org/.metadata/x:1",
        "https://registry.example.org/x:.cvmfscatalog",
        "https://registry.example.org/x:1/../../y:2",
        "https://new_repository/x/y:1",
    ];
    let mut text = format!("version: 1\nuser: robot\ncvmfs_repo: {}\ninput:\n", scenarios::repository::FQRN);
    for wish in bad.iter().copied().chain([good.as_str()]) {
        text += &format!("  - '{wish}'\n");
    }
    let list = WishList::parse("wishes.yaml".as_ref(), text.as_bytes()).unwrap();
    let failed: Vec<_> = list.failed_wishes().collect();
    assert_eq!(failed.iter().map(|w| w.wish.as_str()).collect::<Vec<_>>(), bad, "all mistakes at once");
    for (n, wish) in failed.iter().enumerate() {
        assert_outcome(wish, Failed);
        assert_eq!(wish.line, Some(5 + n as u64));
        assert!(wish.error.is_some());
    }
    let requests: Vec<Request> =
        list.wishes.iter().map(|w| Request { line: Some(w.line), ..Request::new(&w.text, w.source.clone()) }).collect();
    assert_eq!(requests.len(), 1);
    let converter = site.converter();
    let report = converter.apply(&converter.plan(&requests).unwrap()).unwrap();
    assert_eq!(outcomes(&report), [Added]);
    site.assert_sound();
}

#[test]
fn what_is_no_image_is_never_replaced() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    honest().push(&registry, "lab/x", "1");
    // Somebody keeps other things in the repository.
    let lock = site.target.lock().unwrap();
    let now = time::UtcDateTime::now();
    let mut transaction = site.target.begin(&lock, now).unwrap();
    let path = |text: &str| RepoPath::parse(text).unwrap();
    let top = publisher::target::directory_meta(now);
    transaction.ensure_directories(&path("/tools/dir:1"), top, &|_| false).unwrap();
    let meta = file_meta(now);
    let marker = site.target.marker(cvmfs::hash::Algorithm::Sha1, now).unwrap();
    for name in ["/tools/file:1", "/afile"] {
        let entry = Entry::file("", meta, 0, marker.content.unwrap(), marker.compression());
        transaction.put(&path(name), entry, &[]).unwrap();
    }
    transaction.put(&path("/tools/link:1"), Entry::symlink("", meta, "../elsewhere"), &[]).unwrap();
    site.target.commit(transaction).unwrap();
    drop(lock);
    let before = site.tree("");

    let source = wish(&registry, "lab/x:1");
    let names = ["tools/file:1", "tools/dir:1", "tools/link:1", "afile/x:1"];
    let mut wishes: Vec<(&str, Option<&str>)> = names.iter().map(|n| (source.as_str(), Some(*n))).collect();
    wishes.push((&source, Some("tools/good:1")));
    let report = site.convert_as(&wishes);
    for (name, wish) in names.iter().zip(&report.wishes) {
        assert_eq!(wish.outcome, Failed, "{name}");
        let error = wish.error.as_deref().unwrap();
        assert!(error.contains(name.split('/').next().unwrap()), "{name}: {error}");
    }
    assert_outcome(&report.wishes[4], Added);
    let after = site.tree("");
    for (path, node) in &before {
        if !path.is_empty() {
            assert_eq!(after.get(path), Some(node), "{}", path.escape_ascii());
        }
    }
    site.assert_sound();
}

#[test]
fn passwords_are_not_shown_to_hosts_that_a_registry_points_to() {
    let (registry, storage, thief) = (TestRegistry::spawn(), TestRegistry::spawn(), TestRegistry::spawn());
    let mut site = Site::new();
    let pushed = honest().push(&registry, "lab/x", "1");
    registry.require_basic("robot", "secret");
    let password = Credential::password("robot", "secret");
    site.credentials = Credentials::anonymous().with(registry.address().to_string(), password);
    registry.fault(Fault::redirect_to(storage.url()).on("/blobs/").always());
    let has_password = |server: &TestRegistry| server.requests().iter().any(|r| r.header("authorization").is_some());

    // The other host asks for a password of its own.
    storage.challenge(&format!(r#"Bearer realm="{}/token",service="test""#, thief.url()));
    let report = site.convert(&[wish(&registry, "lab/x:1")]);
    assert_outcome(&report.wishes[0], Failed);
    let error = report.wishes[0].error.as_deref().unwrap();
    assert!(error.contains(storage.url()), "{error}");
    assert!(!error.contains("secret"), "{error}");
    assert!(!has_password(&storage) && thief.requests().is_empty());
    assert_eq!(site.revision(), 0);

    // It gives the blob without: a redirect as object stores do it.
    let storage = TestRegistry::spawn();
    honest().push_blobs(&storage);
    registry.heal();
    registry.fault(Fault::redirect_to(storage.url()).on("/blobs/").always());
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:1")]).wishes[0], Added);
    assert_eq!(storage.requests().len(), 2, "config and layer");
    assert!(has_password(&registry) && !has_password(&storage));
    assert!(!site.tree(&flat_path(pushed.config)).is_empty());
    site.assert_sound();
}

#[test]
fn a_token_realm_on_another_host_gets_no_password_of_a_third() {
    let (registry, other) = (TestRegistry::spawn(), TestRegistry::spawn());
    let mut site = Site::new();
    honest().push(&registry, "lab/x", "1");
    registry.require_token(&other);
    other.refuse_anonymous();
    other.add_account("robot", "secret");
    // The password is for the host of the realm as a registry, not for the registry that names it.
    let password = Credential::password("robot", "secret");
    site.credentials = Credentials::anonymous().with(other.address().to_string(), password);
    let report = site.convert(&[wish(&registry, "lab/x:1")]);
    assert_outcome(&report.wishes[0], Failed);
    for server in [&registry, &other] {
        assert!(server.requests().iter().all(|r| r.header("authorization").is_none()));
    }
    assert_eq!(site.revision(), 0);
    site.assert_sound();
}

#[test]
fn trouble_that_passes_is_waited_out() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let layer = Layer::new(&[file("f", noise(1, 400_000))], Packing::Gzip);
    Image::new([layer]).push(&registry, "lab/x", "1");
    registry.fault(Fault::status(503).on("/manifests/").any_method());
    registry.fault(Fault::retry_after(429, "0").on("/blobs/"));
    registry.fault(Fault::cut_after(100_000).on("/blobs/"));
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:1")]).wishes[0], Added);
    site.assert_sound();
}

#[test]
fn a_failed_layer_fails_every_image_that_needs_it_and_no_other() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let bad = || {
        let mut layer = Layer::new(&[file("bad", noise(3, 3000))], Packing::Plain);
        layer.blob[700] ^= 1;
        layer
    };
    let good = |n: u64| Layer::new(&[file("good", noise(n, 3000))], Packing::Gzip);
    Image::new([good(1), bad()]).push(&registry, "lab/x", "1");
    Image::new([bad(), good(2)]).push(&registry, "lab/x", "2");
    Image::new([good(1), good(2)]).push(&registry, "lab/x", "3");
    let report = site.convert(&[1, 2, 3].map(|n| wish(&registry, &format!("lab/x:{n}"))));
    assert_eq!(outcomes(&report), [Failed, Failed, Added]);
    assert_eq!(registry.count("GET", &bad().digest.to_string()), 1, "asked for once");
    for n in [1, 2] {
        assert!(report.wishes[n - 1].error.as_deref().unwrap().contains(&bad().digest.to_string()));
    }
    let links = site.tree("").keys().filter(|p| p.starts_with(public(&registry, "lab/x:").as_bytes())).count();
    assert_eq!(links, 1);
    site.assert_sound();
}

#[test]
fn devices_and_odd_times_are_published_as_they_are() {
    let members = [
        special("zero", Kind::Char(1, 5)),
        special("large", Kind::Block(4095, 1_048_575)),
        special("pipe", Kind::Fifo).mode(0o7777),
        file("never", "").mtime(0),
        file("late", "").mtime(253_402_300_799),
        file("early", "").mtime(-62_135_596_800),
        dir("o"),
        opaque("o"),
        file("mode", "").mode(0),
    ];
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = Image::of(&[&members]).push(&registry, "lab/x", "1");
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:1")]).wishes[0], Added);
    assert_flat(&site, pushed.config, &naive::unpack([&members[..]]), "the image");
    site.assert_sound();
}
