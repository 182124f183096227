use super::*;

const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","created":"2026-01-02T03:04:05Z","config":{"Env":["A=1"],"Entrypoint":["/x","it's"],
"Cmd":["$y"],"User":"7:8","WorkingDir":"/w","Labels":{"l":"v"},"Healthcheck":{"Test":["CMD","true"]},"StopSignal":"SIGQUIT","Shell":["/bin/ksh"],
"ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}},"OnBuild":["RUN x"]},"container":"abc","container_config":{},"docker_version":"1",
"history":[{"created_by":"secret"}],"rootfs":{"type":"layers","diff_ids":["sha256:DIFF"]}}"#;

fn config() -> Vec<u8> {
    CONFIG.replace("DIFF", &"d".repeat(64)).into_bytes()
}

fn manifest() -> Manifest {
    let bytes = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config()), "size": 10 },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": format!("sha256:{}", "e".repeat(64)), "size": 99 }],
    });
    match crate::manifest::Document::parse(bytes.to_string().as_bytes(), None).unwrap() {
        crate::manifest::Document::Manifest(manifest) => manifest,
        crate::manifest::Document::Index(_) => unreachable!("it is a manifest"),
    }
}

fn thin() -> ThinImage {
    let (manifest, config) = (manifest(), config());
    let source = Source {
        name: "https://registry.hub.docker.com/library/x:1",
        manifest: &manifest,
        manifest_digest: ManifestDigest::of(b"m"),
        config: &config,
        repository: "images.example.org",
    };
    ThinImage::new(&source).unwrap()
}

#[test]
fn the_same_source_gives_the_same_bytes_for_ever() {
    let image = thin();
    assert_eq!(image, thin());
    // A change here means that all thin images of all users are pushed again.
    let digests = [&image.layer, &image.config, &image.manifest].map(|blob| blob.digest.hex());
    let pinned = [
        "9428393c0b0aefe6849348754a576dd665a626bb79ee568b3654ee6287754ea5",
        "f35e01020662fd48f04acc6b90c2cc22ef8b9c8aecdcb9c421c47bc99ffd205e",
        "42706233e089cc5d430a185c184ad921d59feea62663bc5289b33d1a6c7ae750",
    ];
    assert_eq!(digests, pinned);
    assert!(image.size() < 6000, "{}", image.size());
}

#[test]
fn the_config_keeps_everything_that_says_how_to_run() {
    let (source, thin): (Value, Value) =
        (serde_json::from_slice(&config()).unwrap(), serde_json::from_slice(&thin().config.bytes).unwrap());
    for key in [
        "Entrypoint",
        "Cmd",
        "User",
        "WorkingDir",
        "Labels",
        "Healthcheck",
        "StopSignal",
        "Shell",
        "ExposedPorts",
        "Volumes",
        "OnBuild",
    ] {
        assert_eq!(thin["config"][key], source["config"][key], "{key}");
    }
    assert_eq!(thin["config"]["Env"], json!(["A=1", "CVMFS_IMAGE=true"]));
    assert_eq!((&thin["architecture"], &thin["created"]), (&source["architecture"], &source["created"]));
    assert!(thin.get("container").is_none() && !thin.to_string().contains("secret"));
}

#[test]
fn the_layer_is_an_ordinary_one_and_the_config_names_it() {
    let image = thin();
    let mut plain = Vec::new();
    let mut rest = &image.layer.bytes[10..];
    // Stored blocks: last, length, complement, content.
    loop {
        let length = usize::from(u16::from_le_bytes([rest[1], rest[2]]));
        plain.extend_from_slice(&rest[5..5 + length]);
        let last = rest[0] == 1;
        rest = &rest[5 + length..];
        if last {
            break;
        }
    }
    assert_eq!(rest.len(), 8);
    let config = crate::manifest::Config::parse(&image.config.bytes).unwrap();
    assert_eq!(config.diff_ids, [DiffId::of(&plain)]);
    let mut archive = tar::Archive::new(plain.as_slice());
    let mut entries = archive.entries().unwrap();
    let mut entry = entries.next().unwrap().unwrap();
    assert_eq!((entry.path().unwrap().to_str(), entry.header().mode().unwrap()), (Some("thin.json"), 0o644));
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
    assert_eq!(ThinRecord::parse(&content).unwrap(), image.record);
    drop(entry);
    assert!(entries.next().is_none());
}

#[test]
fn checksums_are_those_of_gzip() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    assert_eq!(stored(&[7; 70_000]).len(), 70_000 + 10 + 2 * 5 + 8);
}

#[test]
fn what_the_driver_of_2018_wrote_is_read() {
    let hex = "a".repeat(64);
    let text = json!({ "version": "1.0", "origin": "https://x/y:1", "comment": "", "layers": [
        { "digest": hex, "url": format!("cvmfs://unpacked.cern.ch/.layers/aa/{hex}/layerfs") }] });
    let record = ThinRecord::parse(text.to_string().as_bytes()).unwrap();
    assert_eq!(record.layers[0].repository, "unpacked.cern.ch");
    assert_eq!((record.layers[0].layer.hex(), record.origin.as_deref()), (hex, Some("https://x/y:1")));
}

#[test]
fn nothing_leads_out_of_the_layers_of_a_repository() {
    let hex = "a".repeat(64);
    let good = format!("cvmfs://a.b/.layers/aa/{hex}/layerfs");
    let one =
        |digest: &str, url: &str| json!({ "version": "1.0", "layers": [{ "digest": digest, "url": url }] }).to_string();
    assert!(ThinRecord::parse(one(&hex, &good).as_bytes()).is_ok());
    let other = "b".repeat(64);
    for (digest, url) in [
        (other.as_str(), good.as_str()),
        (&hex, &good.replace("cvmfs:", "file:")),
        (&hex, &good.replace("a.b", "..")),
        (&hex, &good.replace("a.b", "")),
        (&hex, &good.replace("a.b", ".hidden")),
        (&hex, &good.replace("/layerfs", "/layerfs/../../..")),
        (&hex, &good.replace(".layers", "x/../.layers")),
        (&hex, &good.replace("/aa/", "/bb/")),
        (&hex, "http://example.org/"),
        (&hex, "/etc"),
        ("../../etc", "cvmfs://a.b/.layers/../../etc/layerfs"),
    ] {
        assert!(
            matches!(ThinRecord::parse(one(digest, url).as_bytes()), Err(ThinError::Url { position: 0, .. })),
            "{digest} {url}"
        );
    }
    let entry = json!({ "digest": hex, "url": good });
    let many = json!({ "version": "1.0", "layers": vec![entry; 501] }).to_string();
    assert!(matches!(ThinRecord::parse(many.as_bytes()), Err(ThinError::TooLarge { what: "layers", found: 501, .. })));
    assert!(matches!(ThinRecord::parse(&vec![b' '; MAX_THIN + 1]), Err(ThinError::TooLarge { what: "bytes", .. })));
    assert!(matches!(ThinRecord::parse(br#"{"version":"3.0","layers":[]}"#), Err(ThinError::Version(_))));
    assert!(ThinRecord::parse(br#"{"version":"3.0","min_version":"1.0","layers":[]}"#).is_ok());
    assert!(ThinRecord::parse(b"[]").is_err());
}

#[test]
fn an_index_states_the_platforms() {
    let index: Value = serde_json::from_slice(&index(&[thin()], "x").bytes).unwrap();
    assert_eq!(index["manifests"][0]["platform"], json!({ "architecture": "amd64", "os": "linux" }));
    assert_eq!(index["manifests"][0]["digest"], json!(thin().manifest.digest));
}
