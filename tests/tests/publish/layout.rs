//! Where everything is: paths, catalogs, links and records.

use std::collections::BTreeSet;

use image::digest::{ChainId, LayerDigest};
use publisher::report::Outcome::Added;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, Layer, Packing, file, media};
use scenarios::repository::{Site, assert_outcome, flat_path, layer_path, public, wish};
use serde_json::{Value, json};

use crate::{content, target, two_layers};

#[test]
fn lays_out_everything_as_documented() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = two_layers().push(&registry, "lab/x", "1");
    let report = site.convert(&[wish(&registry, "lab/x:1")]);
    assert_outcome(&report.wishes[0], Added);
    assert_eq!((report.revision_before, report.revision), (Some(0), Some(1)), "one publish");
    site.assert_sound();
    let published = site.published("").unwrap();

    let host = registry.address().to_string();
    let records = format!(".metadata/{host}/lab/x:1");
    let config = pushed.config.hex();
    let chains = ChainId::stack(&pushed.diff_ids);
    let bucketed = |top: &str, hex: &str| format!("{top}/{}/{hex}", &hex[..2]);
    let index = |kind: &str, hex: &str| bucketed(&format!(".index/{kind}"), hex);
    let layers: Vec<String> = pushed.layers.iter().map(|l| bucketed(".layers", &l.hex())).collect();
    let flat = bucketed(".flat", &config);
    let cover = format!("{}/.cover-{config}", &flat[..8]);

    // Every path outside of the trees of layers and flat.
    let mut expected: BTreeSet<String> = BTreeSet::new();
    let mut expect = |path: &str| {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        expected.extend(ends.map(|end| path[..end].to_owned()));
    };
    expect(&format!("{host}/lab/x:1"));
    expect(&flat);
    expect(&cover);
    for layer in &layers {
        expect(&format!("{layer}/layerfs"));
        expect(&format!("{layer}/.metadata/layers.json"));
        expect(&format!("{layer}/.metadata/format.json"));
    }
    for record in ["manifest.json", "image-manifest.json", "config.json", "status.json"] {
        expect(&format!("{records}/{record}"));
    }
    for (diff_id, chain) in pushed.diff_ids.iter().zip(&chains) {
        expect(&index("diff-id", &diff_id.hex()));
        expect(&index("chain-id", &chain.hex()));
    }
    expect(&index("image", &chains[1].hex()));
    expect(&index("config", &config));
    expect(&index("manifest", &pushed.manifest.hex()));
    expected.insert(String::new());
    let trees = [format!("{flat}/"), format!("{cover}/")];
    let is_inside = |path: &str| path.contains("/layerfs/") || trees.iter().any(|tree| path.starts_with(tree));
    let found: BTreeSet<String> = published
        .tree
        .keys()
        .map(|path| String::from_utf8(path.clone()).unwrap())
        .filter(|path| !is_inside(path))
        .collect();
    assert_eq!(found, expected);

    // Every nested catalog.
    let mut catalogs: BTreeSet<String> =
        [host.clone(), ".metadata".into(), format!(".metadata/{host}"), ".index".into()].into();
    catalogs.extend([".flat".to_owned(), flat[..8].to_owned(), flat.clone(), ".layers".to_owned()]);
    for layer in &layers {
        catalogs.extend([layer[..10].to_owned(), layer.clone()]);
    }
    for entry in expected.iter().filter(|p| p.starts_with(".index/") && p.matches('/').count() == 2) {
        catalogs.insert(entry.clone());
    }
    assert_eq!(published.catalogs, catalogs);

    // Links, all of them relative.
    let tree = &published.tree;
    assert_eq!(target(tree, &format!("{host}/lab/x:1")), format!("../../{flat}"));
    for ((diff_id, chain), layer) in pushed.diff_ids.iter().zip(&chains).zip(&layers) {
        let to = format!("../../../{layer}");
        assert_eq!(target(tree, &index("diff-id", &diff_id.hex())), to);
        assert_eq!(target(tree, &index("chain-id", &chain.hex())), to);
    }

    // Records.
    assert_eq!(content(tree, &index("config", &config)), pushed.config_bytes);
    assert_eq!(content(tree, &index("manifest", &pushed.manifest.hex())), pushed.manifest_bytes);
    assert_eq!(content(tree, &format!("{records}/config.json")), pushed.config_bytes);
    assert_eq!(content(tree, &format!("{records}/image-manifest.json")), pushed.manifest_bytes);
    let json = |path: &str| serde_json::from_slice::<Value>(content(tree, path)).unwrap();
    let blob = |media_type: &str, size: u64, digest: &dyn std::fmt::Display| json!({"MediaType": media_type, "Size": size, "Digest": digest.to_string()});
    let packed = format!("{}+gzip", media::OCI_LAYER);
    let all: Vec<Value> = pushed.layers.iter().zip(&pushed.sizes).map(|(l, size)| blob(&packed, *size, l)).collect();
    assert_eq!(
        json(&format!("{records}/manifest.json")),
        json!({
            "SchemaVersion": 2,
            "MediaType": media::OCI_MANIFEST,
            "Config": blob(media::OCI_CONFIG, pushed.config_bytes.len() as u64, &pushed.config),
            "Layers": all,
        })
    );
    let status = json(&format!("{records}/status.json"));
    assert_eq!(status["schema"], 1);
    assert_eq!(status["image"], format!("http://{host}/lab/x:1"));
    assert_eq!(status["digest"], pushed.manifest.to_string());
    assert_eq!(status["config"], pushed.config.to_string());
    assert_eq!(status["platform"], "linux/amd64");
    assert_eq!(status["revision"], 1);
    assert!(status["published"].as_str().unwrap().ends_with('Z') && status["generator"].is_string(), "{status}");
    for (place, layer) in layers.iter().enumerate() {
        let records = json(&format!("{layer}/.metadata/layers.json"));
        assert_eq!(records.as_array().map(Vec::len), Some(1), "an array of one object");
        let record = &records[0];
        assert_eq!(record["id"], pushed.diff_ids[place].hex());
        assert_eq!(record["compressed-diff-digest"], pushed.layers[place].to_string());
        assert_eq!(record["compressed-size"], pushed.sizes[place]);
        assert_eq!(record["diff-digest"], pushed.diff_ids[place].to_string());
        let format = json(&format!("{layer}/.metadata/format.json"));
        assert_eq!(
            (&format["schema"], &format["whiteouts"], &format["xattrs"]),
            (&json!(1), &json!("overlay"), &json!(true))
        );
        assert_eq!(format["diff_id"], pushed.diff_ids[place].to_string());
        assert_eq!((&format["entries"], &format["lost"]), (&json!([5, 4][place]), &json!([])));
        assert_eq!(format["size"], record["diff-size"]);
    }
}

#[test]
fn names_of_the_operators_choice_replace_those_of_the_registry() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = Image::of(&[&[file("f", "f")]]).push(&registry, "lab/x", "1");
    let report = site.convert_as(&[(&wish(&registry, "lab/x:1"), Some("tools/editor:3"))]);
    assert_outcome(&report.wishes[0], Added);
    let tree = site.tree("");
    assert_eq!(target(&tree, "tools/editor:3"), format!("../{}", flat_path(pushed.config)));
    assert!(tree.contains_key(&b".metadata/tools/editor:3/status.json"[..]));
    assert!(!tree.contains_key(registry.address().to_string().as_bytes()));
    site.assert_sound();
}

#[test]
fn directories_of_a_thousand_tags_get_a_catalog_of_their_own() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = Image::of(&[&[file("f", "f")]]).push(&registry, "lab/x", "t0");
    for n in 1..=1000 {
        registry.put_manifest("lab/x", &format!("t{n}"), media::OCI_MANIFEST, pushed.manifest_bytes.clone());
    }
    let wishes: Vec<String> = (0..1000).map(|n| wish(&registry, &format!("lab/x:t{n}"))).collect();
    let catalog = |site: &Site, top: &str| site.published(top).unwrap().catalogs.contains("lab");
    let (links, records) = (registry.address().to_string(), format!(".metadata/{}", registry.address()));
    assert!(site.convert(&wishes).wishes.iter().all(|w| w.outcome == Added));
    assert!(!catalog(&site, &links) && !catalog(&site, &records), "a thousand is not more than a thousand");
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:t1000")]).wishes[0], Added);
    assert!(catalog(&site, &links) && catalog(&site, &records));
    let tree = site.tree("");
    for n in 0..=1000 {
        let link = public(&registry, &format!("lab/x:t{n}"));
        assert_eq!(target(&tree, &link), format!("../../{}", flat_path(pushed.config)));
        assert!(tree.contains_key(format!(".metadata/{link}/status.json").as_bytes()));
    }
    site.assert_sound();
}

#[test]
fn the_first_writer_of_an_index_entry_stays() {
    // Two blobs, one content: the first writer of an index entry stays.
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let members = [file("f", "f")];
    let (gzip, zstd) = (Layer::new(&members, Packing::Gzip), Layer::new(&members, Packing::Zstd));
    assert_eq!(gzip.diff_id, zstd.diff_id);
    let first: LayerDigest = gzip.digest;
    Image::new([gzip]).push(&registry, "lab/x", "1");
    Image::new([zstd]).push(&registry, "lab/x", "2");
    site.convert(&[wish(&registry, "lab/x:1")]);
    let diff_id = Layer::new(&members, Packing::Plain).diff_id.hex();
    let entry = format!(".index/diff-id/{}/{diff_id}", &diff_id[..2]);
    assert_eq!(target(&site.tree(""), &entry), format!("../../../{}", layer_path(first)));
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:2")]).wishes[0], Added);
    assert_eq!(target(&site.tree(""), &entry), format!("../../../{}", layer_path(first)));
    site.assert_sound();
}
