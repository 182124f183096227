//! Thin images of what is published.

use image::reference::{Reference, Wish};
use image::thin::ThinRecord;
use publisher::convert::Request;
use publisher::report::{Outcome, Report};
use publisher::thin::{self, ThinState};
use registry::testing::{Fault, TestRegistry};
use registry::{Client, ClientConfig, Credentials, RetryPolicy};
use scenarios::image_builder::{Format, Image, file, index_entry, media, push_index};
use scenarios::repository::{FQRN, Site, list};
use serde_json::Value;

struct Pass<'a> {
    site: &'a Site,
    format: String,
    credentials: Credentials,
}

impl Pass<'_> {
    fn run(&self, wishes: &[String]) -> Report {
        let request = |text: &String| Request::new(text, Wish::parse(text).unwrap());
        self.run_requests(&wishes.iter().map(request).collect::<Vec<_>>())
    }

    fn run_requests(&self, requests: &[Request]) -> Report {
        let converter = self.site.converter();
        let plan = converter.plan(requests).unwrap();
        let mut report = converter.apply(&plan).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let retry = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
        let config = ClientConfig { credentials: self.credentials.clone(), retry, ..ClientConfig::default() };
        let client = Client::new(config).unwrap();
        thin::push(&client, runtime.handle(), &self.format, FQRN, &plan, &mut report);
        report
    }
}

fn states(report: &Report) -> Vec<Option<ThinState>> {
    report.wishes.iter().map(|wish| wish.thin.as_ref().map(|thin| thin.outcome)).collect()
}

#[test]
fn every_tag_of_a_wildcard_gets_its_own_thin_image_and_only_once() {
    let (registry, output, site) = (TestRegistry::spawn(), TestRegistry::spawn(), Site::new());
    for tag in ["1.0", "1.1", "2.0"] {
        Image::of(&[&[file("version", tag)]]).push(&registry, "lab/x", tag);
    }
    let format = format!("{}/thin/$(repository):$(tag)", output.url());
    let pass = Pass { site: &site, format, credentials: Credentials::anonymous() };
    let wishes = [format!("{}/lab/x:1.*", registry.url())];
    let report = pass.run(&wishes);
    assert_eq!(states(&report), [Some(ThinState::Pushed); 2]);
    for tag in ["1.0", "1.1"] {
        let (_, manifest) = output.manifest("thin/lab/x", tag).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(
            manifest["annotations"]["org.opencontainers.image.base.name"],
            format!("{}/lab/x:{tag}", registry.url())
        );
    }
    assert!(output.manifest("thin/lab/x", "2.0").is_none());
    output.forget_requests();
    let report = pass.run(&wishes);
    assert_eq!(states(&report), [Some(ThinState::Unchanged); 2]);
    let methods: Vec<_> = output.requests().iter().map(|request| request.method.clone()).collect();
    assert_eq!(methods, ["HEAD", "HEAD"]);
}

#[test]
fn the_layers_that_a_thin_image_names_are_published() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let image = Image::of(&[&[file("a", "1")], &[file("b", "2")]]);
    let pushed = image.push(&registry, "lab/x", "1");
    let format = format!("{}/$(repository)_thin:$(tag)", registry.url());
    let pass = Pass { site: &site, format, credentials: Credentials::anonymous() };
    pass.run(&[format!("{}/lab/x:1", registry.url())]);
    let (_, manifest) = registry.manifest("lab/x_thin", "1").unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let mut tar = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&registry.blob(layer).unwrap()[..]), &mut tar)
        .unwrap();
    let mut content = Vec::new();
    let mut archive = tar::Archive::new(tar.as_slice());
    std::io::Read::read_to_end(&mut archive.entries().unwrap().next().unwrap().unwrap(), &mut content).unwrap();
    let record = ThinRecord::parse(&content).unwrap();
    assert_eq!((record.manifest, record.config), (Some(pushed.manifest), Some(pushed.config)));
    let tree = site.tree("");
    for layer in &record.layers {
        assert_eq!(layer.repository, FQRN);
        let (bucket, hex) = (layer.layer.bucket(), layer.layer.hex());
        assert!(tree.contains_key(format!(".layers/{bucket}/{hex}/layerfs").as_bytes()), "{hex}");
    }
    assert_eq!(record.layers.len(), 2);
}

#[test]
fn a_registry_that_refuses_fails_the_thin_image_and_not_the_image() {
    let (registry, output, site) = (TestRegistry::spawn(), TestRegistry::spawn(), Site::new());
    Image::of(&[&[file("a", "1")]]).push(&registry, "lab/x", "1");
    output.require_basic("robot", "secret");
    let format = format!("{}/thin/$(image)", output.url());
    let wishes = [format!("{}/lab/x:1", registry.url())];
    let anonymous = Pass { site: &site, format: format.clone(), credentials: Credentials::anonymous() };
    let report = anonymous.run(&wishes);
    assert_eq!((report.wishes[0].outcome, states(&report)), (Outcome::Added, vec![Some(ThinState::Failed)]));
    let error = report.wishes[0].thin.as_ref().unwrap().error.clone().unwrap();
    assert!(error.contains("access refused"), "{error}");
    assert_eq!(report.exit_status().code(), 1);
    let image = Reference::parse(&wishes[0]).unwrap();
    let variable = |name: &str| (name == "DUCC_OUTPUT_REGISTRY_PASS").then(|| "secret".to_owned());
    let credentials = thin::credentials(&format, "robot", &[&image], variable).unwrap();
    let robot = Pass { site: &site, format, credentials };
    output.fault(Fault::status(503).method("PUT").on("/manifests/").times(1));
    assert_eq!(states(&robot.run(&wishes)), [Some(ThinState::Failed)]);
    assert!(output.manifest("thin/lab/x", "1").is_none());
    let report = robot.run(&wishes);
    assert_eq!((report.wishes[0].outcome, states(&report)), (Outcome::Unchanged, vec![Some(ThinState::Pushed)]));
    assert_eq!(report.exit_status().code(), 0);
}

#[test]
fn two_images_do_not_share_a_thin_image() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    for tag in ["1", "2"] {
        Image::of(&[&[file("version", tag)]]).push(&registry, "lab/x", tag);
    }
    let format = format!("{}/thin/one:latest", registry.url());
    let pass = Pass { site: &site, format, credentials: Credentials::anonymous() };
    let report = pass.run(&["1", "2"].map(|tag| format!("{}/lab/x:{tag}", registry.url())));
    assert_eq!(states(&report), [Some(ThinState::Pushed), Some(ThinState::Failed)]);
    let error = report.wishes[1].thin.as_ref().unwrap().error.clone().unwrap();
    assert!(error.contains("output_format"), "{error}");
}

#[test]
fn a_plan_names_the_thin_images_that_a_pass_would_push() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    for tag in ["1", "2"] {
        Image::of(&[&[file("version", tag)]]).push(&registry, "lab/x", tag);
    }
    let texts = ["1", "2", "3"].map(|tag| format!("{}/lab/x:{tag}", registry.url()));
    let request = |text: &String| Request::new(text, Wish::parse(text).unwrap());
    let plan = site.converter().plan(&texts.iter().map(request).collect::<Vec<_>>()).unwrap();
    let shown = |format: &str| plan.to_text(FQRN, &thin::targets(format, &plan));
    let named = shown("https://thin.example.org/$(repository):$(tag)");
    for tag in ["1", "2"] {
        assert!(named.contains(&format!("            thin image https://thin.example.org/lab/x:{tag}\n")), "{named}");
    }
    assert_eq!(named.matches("thin image").count(), 2, "what failed gets none: {named}");
    let same = shown("https://thin.example.org/one:latest");
    assert!(same.contains("no thin image: ") && same.contains("output_format"), "{same}");
    let json = plan.to_json(FQRN, &thin::targets("https://thin.example.org/one:latest", &plan));
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["images"][0]["thin"]["image"], "https://thin.example.org/one:latest");
    assert!(value["images"][1]["thin"]["error"].as_str().unwrap().contains("output_format"), "{json}");
    assert!(value["images"][2].get("thin").is_none());
    assert!(!plan.to_text(FQRN, &[None, None, None]).contains("thin"));
}

#[test]
fn an_image_for_several_platforms_has_one_thin_image_which_is_an_index() {
    let (registry, output, site) = (TestRegistry::spawn(), TestRegistry::spawn(), Site::new());
    let of = |architecture: &str| {
        Image::of(&[&[file("a", architecture)]]).architecture(architecture).push_untagged(&registry, "lab/x")
    };
    let entries = ["amd64", "arm64"].map(|a| index_entry(&of(a), media::OCI_MANIFEST, &format!("linux/{a}")));
    push_index(&registry, "lab/x", "1", Format::Oci, &entries);
    let format = format!("{}/thin/$(repository):$(tag)", output.url());
    let pass = Pass { site: &site, format, credentials: Credentials::anonymous() };
    let run = |platforms: &str| {
        let options = format!("platforms: {platforms}, products: [flat, layers, thin]");
        let text = format!("output_format: x\ninput: [{{image: '{}/lab/x:1', {options}}}]\n", registry.url());
        let requests: Vec<Request> = list(&text).wishes.iter().map(|w| w.request(w.source.clone())).collect();
        pass.run_requests(&requests)
    };
    let report = run("[linux/amd64, linux/arm64]");
    assert_eq!(states(&report), [Some(ThinState::Pushed), None]);
    let (media_type, index) = output.manifest("thin/lab/x", "1").unwrap();
    assert_eq!(media_type, media::OCI_INDEX);
    let index: Value = serde_json::from_slice(&index).unwrap();
    let platforms: Vec<_> =
        index["manifests"].as_array().unwrap().iter().map(|m| &m["platform"]["architecture"]).collect();
    assert_eq!(platforms, ["amd64", "arm64"]);
    assert_eq!(states(&run("[linux/amd64, linux/arm64]")), [Some(ThinState::Unchanged), None]);
    // A platform that is lacking does not keep the others from having theirs.
    let report = run("[linux/s390x, linux/arm64, linux/amd64]");
    assert_eq!(states(&report), [None, Some(ThinState::Pushed), None]);
}

#[test]
fn an_image_without_layers_has_no_thin_image() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    Image::of(&[&[file("a", "1")]]).push(&registry, "lab/x", "1");
    let text = format!("input: [{{image: '{}/lab/x:1', products: flat}}]\n", registry.url());
    let requests: Vec<Request> = list(&text).wishes.iter().map(|w| w.request(w.source.clone())).collect();
    let plan = site.converter().plan(&requests).unwrap();
    assert_eq!(thin::targets("https://thin.example.org/$(image)", &plan), [None]);
}
