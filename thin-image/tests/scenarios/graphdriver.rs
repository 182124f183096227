//! The graph driver, asked as Docker asks it: through its socket's routes, with real overlays where this machine lets us mount.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use image::digest::{ChainId, DiffId, ImageId, LayerDigest};
use image::layout::{FormatRecord, IndexKey, Layout, OwnedPath};
use image::manifest::Config;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};
use thin_image::config::PreferFlat;
use thin_image::graphdriver::driver::Driver;
use thin_image::graphdriver::router;
use thin_image::published::Repository;
use tower::ServiceExt as _;

const NAME: &str = "images.example.org";
const NO_PATH: Option<&Path> = None;

/// A driver with a directory for Docker's files and a repository.
struct World {
    directory: tempfile::TempDir,
    router: Router,
}

impl World {
    /// Nothing, said on a line that is counted, where this machine doesn't let a test mount overlays.
    async fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        if !may_mount(directory.path()) {
            println!("skipped: not root, or overlayfs can't be mounted here");
            return None;
        }
        fs::create_dir_all(directory.path().join("cvmfs/.layers")).unwrap();
        let mut world = Self { router: Router::new(), directory };
        world.restart();
        let home = world.home();
        world.ask("Init", &json!({ "Home": home, "Opts": [] })).await.unwrap();
        Some(world)
    }

    fn repository(&self) -> Repository {
        Repository::new(NAME, &self.directory.path().join("cvmfs")).unwrap()
    }

    fn home(&self) -> PathBuf {
        self.directory.path().join("docker/cvmfs")
    }

    fn layer(&self, id: &str) -> PathBuf {
        self.home().join("layers").join(id)
    }

    /// Another process in the place of this one; Docker goes on and says nothing.
    fn restart(&mut self) {
        let state = self.directory.path().join("state");
        self.router = router(Arc::new(Driver::new(vec![self.repository()], PreferFlat::Auto, &state).unwrap()));
    }

    /// Publishes a layer with one file; returns how a thin image names it.
    fn publish(&self, file: &str) -> Value {
        let layer = LayerDigest::of(file.as_bytes());
        let content = self.repository().path(&OwnedPath::LayerContent(layer));
        fs::create_dir_all(&content).unwrap();
        fs::write(content.join(file), file).unwrap();
        let hex = layer.hex();
        json!({ "digest": hex, "url": format!("cvmfs://{NAME}/.layers/{}/{hex}/layerfs", &hex[..2]) })
    }

    /// The same for a layer of our own publisher, whose tar is known.
    fn publish_known(&self, file: &str) -> (Value, DiffId) {
        let mut named = self.publish(file);
        let diff_id = DiffId::of(file.as_bytes());
        let format = FormatRecord {
            whiteouts: FormatRecord::OVERLAY.into(),
            xattrs: true,
            diff_id,
            size: 1,
            entries: 1,
            rows: 1,
            lost: Vec::new(),
            lost_more: 0,
            owners: true,
            settled_on: None,
            implicit: Vec::new(),
        };
        self.write(&OwnedPath::LayerFormat(LayerDigest::of(file.as_bytes())), &format.to_bytes());
        named["diffid"] = json!(diff_id);
        (named, diff_id)
    }

    fn write(&self, path: &OwnedPath, bytes: &[u8]) {
        let path = self.repository().path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Publishes the flat of an image of these layers, with a file more and a cover that hides it, and a start-up list.
    fn publish_flat(&self, diffs: &[DiffId]) -> ImageId {
        let diffs: Vec<String> = diffs.iter().map(DiffId::to_string).collect();
        let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diffs}});
        let config = config.to_string();
        let parsed = Config::parse(config.as_bytes()).unwrap();
        let (image, stack) =
            (ImageId::of(config.as_bytes()), *ChainId::stack(&parsed.diff_ids).last().expect("it has layers"));
        self.write(&OwnedPath::Index(IndexKey::Config(image)), config.as_bytes());
        self.write(&OwnedPath::FlatStartup(image), b"{}");
        let (repository, layout, key) = (self.repository(), Layout::new(), OwnedPath::Index(IndexKey::Image(stack)));
        let (flat, cover) = (repository.path(&OwnedPath::Flat(image)), repository.path(&OwnedPath::FlatCover(image)));
        [&flat, &cover].into_iter().for_each(|directory| fs::create_dir_all(directory).unwrap());
        ["flat", "environment"].into_iter().for_each(|name| fs::write(flat.join(name), "").unwrap());
        mknod(&cover.join("environment"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
        let link = repository.path(&key);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(layout.link(&key, &OwnedPath::Flat(image)), link).unwrap();
        image
    }

    /// A client that answers announcements; nothing where no attribute can name it.
    fn client(&self) -> Option<std::sync::mpsc::Receiver<Value>> {
        let socket = self.directory.path().join("client.sock");
        xattr::set(self.repository().mountpoint(), "user.control", socket.as_os_str().as_encoded_bytes()).ok()?;
        let listener = UnixListener::bind(socket).unwrap();
        let (send, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                writeln!(&stream, r#"{{"files":3,"bytes":10}}"#).unwrap();
                let _ = send.send(serde_json::from_str(line.strip_prefix("prefetch ").unwrap()).unwrap());
            }
        });
        Some(told)
    }

    async fn send(&self, uri: &str, body: Body) -> (StatusCode, Bytes) {
        let request = Request::post(uri).body(body).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        (status, axum::body::to_bytes(response.into_body(), 1 << 30).await.unwrap_or_default())
    }

    /// Calls a method; returns its answer or its error.
    async fn ask(&self, method: &str, call: &Value) -> Result<Value, String> {
        let (_, bytes) = self.send(&format!("/GraphDriver.{method}"), Body::from(call.to_string())).await;
        said(&bytes)
    }

    async fn create(&self, method: &str, id: &str, parent: &str) -> Result<Value, String> {
        self.ask(method, &json!({ "ID": id, "Parent": parent })).await
    }

    async fn apply(&self, id: &str, parent: &str, archive: Vec<u8>) -> Result<Value, String> {
        let (_, bytes) =
            self.send(&format!("/GraphDriver.ApplyDiff?id={id}&parent={parent}"), Body::from(archive)).await;
        said(&bytes)
    }

    /// A layer of an image with this archive.
    async fn image(&self, id: &str, parent: &str, archive: Vec<u8>) {
        self.create("Create", id, parent).await.unwrap();
        self.apply(id, parent, archive).await.unwrap();
    }

    async fn get(&self, id: &str) -> Result<PathBuf, String> {
        let answer = self.ask("Get", &json!({ "ID": id })).await?;
        Ok(answer["Dir"].as_str().unwrap().into())
    }

    async fn diff(&self, id: &str, parent: &str) -> Vec<u8> {
        let (status, bytes) =
            self.send("/GraphDriver.Diff", Body::from(json!({ "ID": id, "Parent": parent }).to_string())).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&bytes));
        bytes.to_vec()
    }
}

fn said(bytes: &[u8]) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(bytes).unwrap();
    match value["Err"].as_str() {
        Some(error) => Err(error.to_owned()),
        None => Ok(value),
    }
}

/// Moves this thread into a mount namespace of its own, with a file system below `directory` that overlayfs can write to.
fn may_mount(directory: &Path) -> bool {
    let private = nix::unistd::geteuid().is_root()
        && unshare(CloneFlags::CLONE_NEWNS).is_ok()
        && mount(NO_PATH, "/", NO_PATH, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_PATH).is_ok();
    if !private || mount(Some("none"), directory, Some("tmpfs"), MsFlags::empty(), NO_PATH).is_err() {
        return false;
    }
    for name in ["l", "u", "w", "m"] {
        fs::create_dir(directory.join(name)).unwrap();
    }
    let at = |name: &str| directory.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", at("l"), at("u"), at("w"));
    let merged = directory.join("m");
    let mounted = mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).is_ok();
    let _ = umount2(&merged, MntFlags::MNT_DETACH);
    mounted && xattr::set(directory.join("l"), "trusted.overlay.opaque", b"y").is_ok()
}

/// An archive of members: name, type, content or target.
fn archive(members: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, text) in members {
        let mut header = tar::Header::new_ustar();
        // Not by the crate's own method, which refuses names that are tested here.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        let content = if *kind == tar::EntryType::Regular { text.as_bytes() } else { b"" };
        if content.is_empty() {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

const FILE: tar::EntryType = tar::EntryType::Regular;
const DIRECTORY: tar::EntryType = tar::EntryType::Directory;
const LINK: tar::EntryType = tar::EntryType::Symlink;

fn thin_json(layers: &[Value]) -> Vec<u8> {
    archive(&[("thin.json", FILE, &json!({ "version": "1.0", "layers": layers }).to_string())])
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_container_of_a_thin_image_stands_on_published_layers() {
    let Some(mut world) = World::new().await else { return };
    let layers = [world.publish("base"), world.publish("app")];
    world.image("thin", "", thin_json(&layers)).await;
    assert_eq!(names(&world.get("thin").await.unwrap()), ["thin.json"], "so that it can be pushed");
    world.create("CreateReadWrite", "c-init", "thin").await.unwrap();
    world.create("CreateReadWrite", "c", "c-init").await.unwrap();
    let root = world.get("c").await.unwrap();
    assert_eq!(names(&root), ["app", "base"]);
    fs::write(root.join("new"), "x").unwrap();
    fs::remove_file(root.join("base")).unwrap();
    let changes = world.ask("Changes", &json!({ "ID": "c", "Parent": "c-init" })).await.unwrap();
    assert_eq!(changes["Changes"], json!([{ "Path": "/base", "Kind": 2 }, { "Path": "/new", "Kind": 1 }]));
    // Two hold it, over a restart.
    assert_eq!(world.get("c").await.unwrap(), root);
    world.restart();
    let put = json!({ "ID": "c" });
    world.ask("Put", &put).await.unwrap();
    assert_eq!(names(&root), ["app", "new"], "somebody holds it still");
    world.ask("Put", &put).await.unwrap();
    assert!(!root.exists());
    world.ask("Put", &put).await.expect("one too many changes nothing");

    // What it wrote becomes an ordinary layer on the thin one.
    let committed = world.diff("c", "c-init").await;
    world.image("committed", "thin", committed).await;
    world.create("CreateReadWrite", "d", "committed").await.unwrap();
    assert_eq!(names(&world.get("d").await.unwrap()), ["app", "new"]);
    let metadata = world.ask("GetMetadata", &json!({ "ID": "d" })).await.unwrap();
    assert!(metadata["Metadata"]["LowerDir"].as_str().unwrap().contains("cvmfs/.layers/"), "{metadata}");
    for id in ["d", "committed", "c", "c-init", "thin", "thin"] {
        world.ask("Remove", &json!({ "ID": id })).await.unwrap();
    }
    assert_eq!(names(&world.home().join("layers")), [""; 0]);
    assert_eq!(names(&world.home().join("trash")), [""; 0]);
}

#[tokio::test]
async fn a_container_of_a_thin_image_gets_the_flat_and_the_client_its_list() {
    let Some(mut world) = World::new().await else { return };
    let (layers, diffs): (Vec<Value>, Vec<DiffId>) =
        ["a", "b", "c", "d"].map(|name| world.publish_known(name)).into_iter().unzip();
    let image = world.publish_flat(&diffs);
    let told = world.client();
    world.image("thin", "", thin_json(&layers)).await;
    world.create("CreateReadWrite", "c-init", "thin").await.unwrap();
    world.create("CreateReadWrite", "c", "c-init").await.unwrap();
    assert_eq!(names(&world.get("c").await.unwrap()), ["flat"]);
    world.restart();
    assert_eq!(names(&world.get("c").await.unwrap()), ["flat"]);
    let path = |path: OwnedPath| format!("/{}", Layout::new().print(&path));
    if let Some(told) = told {
        let said = tokio::task::spawn_blocking(move || told.recv_timeout(std::time::Duration::from_secs(20))).await;
        let bases = [path(OwnedPath::FlatCover(image)), path(OwnedPath::Flat(image))];
        assert_eq!(said.unwrap().unwrap(), json!({ "list": path(OwnedPath::FlatStartup(image)), "bases": bases }));
    }

    let flat = world.repository().path(&OwnedPath::Flat(image));
    fs::rename(&flat, flat.with_extension("away")).unwrap();
    let error = world.create("CreateReadWrite", "late", "c-init").await.unwrap_err();
    assert!(error.contains(&format!("the flat root of image {image} is no longer in repository {NAME}")), "{error}");

    // What image and repository don't agree on, what stands on something, and what is not wanted.
    let mut lying = layers.clone();
    lying[1]["diffid"] = json!(DiffId::of(b"something else"));
    world.image("lie", "", thin_json(&lying)).await;
    world.image("below", "", archive(&[("e", FILE, "x")])).await;
    world.image("on", "below", thin_json(&layers)).await;
    world.image("few", "", thin_json(&layers[..3])).await;
    world.publish_flat(&diffs[..3]);
    let driver = Driver::new(vec![world.repository()], PreferFlat::Off, &world.directory.path().join("state")).unwrap();
    world.router = router(Arc::new(driver));
    world.image("off", "", thin_json(&layers)).await;
    for (id, expected) in [
        ("lie", &["a", "b", "c", "d"][..]),
        ("on", &["a", "b", "c", "d", "e"]),
        ("few", &["a", "b", "c"]),
        ("off", &["a", "b", "c", "d"]),
    ] {
        let container = format!("of-{id}");
        world.create("CreateReadWrite", &container, id).await.unwrap();
        assert_eq!(names(&world.get(&container).await.unwrap()), expected, "{id}");
    }
}

#[tokio::test]
async fn a_layer_of_an_image_can_be_written_to_directly_as_buildkit_does() {
    let Some(world) = World::new().await else { return };
    let layers = [world.publish("base")];
    world.image("thin", "", thin_json(&layers)).await;
    world.create("Create", "step", "thin").await.unwrap();
    let root = world.get("step").await.unwrap();
    fs::write(root.join("made"), "x").unwrap();
    world.ask("Put", &json!({ "ID": "step" })).await.unwrap();
    world.ask("Init", &json!({ "Home": world.home() })).await.unwrap();
    world.create("CreateReadWrite", "c", "step").await.unwrap();
    assert_eq!(names(&world.get("c").await.unwrap()), ["base", "made"]);
    // What was filled from an archive stays as it was verified.
    world.image("ordinary", "thin", archive(&[("file", FILE, "x")])).await;
    let root = world.get("ordinary").await.unwrap();
    assert_eq!(names(&root), ["base", "file"]);
    let error = fs::write(root.join("file"), "other").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[tokio::test]
async fn a_layer_that_has_gone_is_named_and_nothing_is_mounted() {
    let Some(world) = World::new().await else { return };
    let layers = [world.publish("base"), world.publish("app")];
    world.image("thin", "", thin_json(&layers)).await;
    world.create("CreateReadWrite", "c", "thin").await.unwrap();
    let hex = layers[0]["digest"].as_str().unwrap();
    fs::remove_dir_all(world.directory.path().join("cvmfs/.layers").join(&hex[..2]).join(hex)).unwrap();
    for error in [world.get("c").await.unwrap_err(), world.create("CreateReadWrite", "d", "thin").await.unwrap_err()] {
        assert!(error.contains(hex) && error.contains("no longer in repository"), "{error}");
    }
    assert!(!world.layer("c").join("merged").exists() && !world.layer("d").exists());
    world.create("Create", "again", "").await.unwrap();
    let error = world.apply("again", "", thin_json(&layers)).await.unwrap_err();
    assert!(error.contains(hex) && error.contains("is not in repository"), "{error}");
    fs::remove_dir_all(world.directory.path().join("cvmfs")).unwrap();
    let error = world.get("c").await.unwrap_err();
    assert!(error.contains("is not mounted"), "{error}");
}

#[tokio::test]
async fn hostile_thin_images_are_refused_and_lead_nowhere() {
    let Some(world) = World::new().await else { return };
    let good = world.publish("base");
    let hex = good["digest"].as_str().unwrap();
    let url = good["url"].as_str().unwrap();
    let with = |url: String| json!({ "digest": hex, "url": url });
    let cases = [
        (vec![with(url.replace(NAME, "other.example.org"))], "other.example.org, which is not configured"),
        (vec![with(url.replace(NAME, ".."))], "only cvmfs://"),
        (vec![with(format!("cvmfs://{NAME}/../../etc"))], "only cvmfs://"),
        (vec![with("/etc".to_owned())], "only cvmfs://"),
        (vec![json!({ "digest": "0", "url": url })], "only cvmfs://"),
        (vec![], "lists 0 layers"),
        (vec![good.clone(); 501], "at most"),
        (vec![good.clone(); 100_000], "at most 262144 are read"),
    ];
    for (number, (layers, reason)) in cases.into_iter().enumerate() {
        let id = format!("hostile-{number}");
        world.create("Create", &id, "").await.unwrap();
        let error = world.apply(&id, "", thin_json(&layers)).await.unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
        let error = world.create("CreateReadWrite", "c", &id).await.unwrap_err();
        assert!(error.contains("not complete"), "{error}");
    }
    // Not the only file: an ordinary layer.
    let other = archive(&[("thin.json", FILE, "{}"), ("other", FILE, "x")]);
    world.image("ordinary", "", other).await;
}

#[tokio::test]
async fn ids_from_requests_are_no_paths() {
    let Some(world) = World::new().await else { return };
    for id in ["", "..", "../../etc", "/etc", "a/b", ".new"] {
        for method in
            ["Create", "CreateReadWrite", "Remove", "Get", "Put", "Exists", "GetMetadata", "Changes", "DiffSize"]
        {
            let error = world.ask(method, &json!({ "ID": id })).await.unwrap_err();
            assert!(error.contains("is not the ID of a layer"), "{method} {id}: {error}");
        }
        assert!(world.apply(&id.replace('/', "%2F"), "", Vec::new()).await.is_err());
    }
    for method in ["Get", "GetMetadata", "Changes", "DiffSize"] {
        let error = world.ask(method, &json!({ "ID": "unknown" })).await.unwrap_err();
        assert!(error.contains("no layer unknown"), "{method}: {error}");
    }
    assert_eq!(world.ask("Exists", &json!({ "ID": "unknown" })).await.unwrap(), json!({ "Exists": false }));
    world.ask("Remove", &json!({ "ID": "unknown" })).await.unwrap();
    world.ask("Put", &json!({ "ID": "unknown" })).await.unwrap();
    let error = world.create("Create", "a", "unknown").await.unwrap_err();
    assert!(error.contains("no layer unknown"), "{error}");
    for (call, reason) in [
        (json!({ "Home": "relative" }), "not a directory that can be used"),
        (json!({ "Home": "/tmp/../etc" }), "not a directory that can be used"),
        (json!({ "Home": "/tmp", "Opts": ["size=1"] }), "storage-opts"),
        (json!({ "Home": "/tmp", "UIDMaps": [{}] }), "userns-remap"),
        (json!({}), "where its directory is"),
    ] {
        let error = world.ask("Init", &call).await.unwrap_err();
        assert!(error.contains(reason), "{call}: {error}");
    }
    assert_eq!(world.send("/GraphDriver.Unknown", Body::empty()).await.0, StatusCode::NOT_FOUND);
    assert!(said(&world.send("/GraphDriver.Create", Body::from("{")).await.1).is_err());
}

#[tokio::test]
async fn nothing_is_written_outside_a_layer() {
    let Some(world) = World::new().await else { return };
    let victim = world.directory.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let outside = world.directory.path().display().to_string();
    world.create("Create", "link", "").await.unwrap();
    let error =
        world.apply("link", "", archive(&[("out", LINK, &outside), ("out/victim", FILE, "bad")])).await.unwrap_err();
    assert!(error.contains("out"), "{error}");
    for name in ["../victim", "a/../../victim"] {
        world.create("Create", "dots", "").await.unwrap();
        let error = world.apply("dots", "", archive(&[(name, FILE, "bad")])).await.unwrap_err();
        assert!(error.contains("has \"..\" in it"), "{error}");
        world.ask("Remove", &json!({ "ID": "dots" })).await.unwrap();
    }
    assert_eq!(fs::read_to_string(victim).unwrap(), "untouched");
    // An absolute name is one below the layer's root.
    world.image("absolute", "", archive(&[("/etc/passwd", FILE, "its own")])).await;
    assert_eq!(fs::read_to_string(world.layer("absolute").join("diff/etc/passwd")).unwrap(), "its own");
}

#[tokio::test]
async fn an_archive_is_applied_once_whatever_docker_repeats() {
    let Some(mut world) = World::new().await else { return };
    let whole = archive(&[("a", FILE, "1"), ("b", FILE, "2")]);
    world.create("Create", "x", "").await.unwrap();
    world.create("Create", "x", "").await.expect("the answer may have been lost");
    assert_eq!(world.apply("x", "", whole.clone()).await.unwrap(), json!({ "Size": 2 }));
    assert_eq!(world.apply("x", "", Vec::new()).await.unwrap(), json!({ "Size": 2 }), "nothing was left to send");
    assert!(world.apply("x", "", whole.clone()).await.unwrap_err().contains("filled already"));
    // A process was killed in the middle: what Docker sends to the next one is the rest, or nothing.
    world.create("Create", "half", "").await.unwrap();
    assert!(world.apply("half", "", whole[..700].to_vec()).await.is_err());
    world.restart();
    for rest in [whole[1024..].to_vec(), Vec::new()] {
        assert!(world.apply("half", "", rest).await.unwrap_err().contains("interrupted"));
    }
    assert!(world.create("CreateReadWrite", "c", "half").await.unwrap_err().contains("not complete"));
    fs::create_dir(world.home().join("trash/of-a-killed-process")).unwrap();
    // A new Docker begins.
    world.ask("Init", &json!({ "Home": world.home() })).await.unwrap();
    assert_eq!(names(&world.home().join("layers")), ["x"]);
    assert_eq!(names(&world.home().join("trash")), [""; 0]);
}

/// Everything that a directory can have in it, made by hand.
fn fill(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("dir/sub")).unwrap();
    fs::write(at("dir/file"), "content").unwrap();
    fs::hard_link(at("dir/file"), at("second-name")).unwrap();
    symlink("/not/there", at("link")).unwrap();
    lchown(at("link"), Some(7), Some(8)).unwrap();
    fs::write(at("set-id"), "x").unwrap();
    lchown(at("set-id"), Some(3_000_000_000), Some(12)).unwrap();
    fs::set_permissions(at("set-id"), fs::Permissions::from_mode(0o6755)).unwrap();
    // CAP_DAC_OVERRIDE, in the second version of the format.
    let capability = [1, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(at("dir/file"), "security.capability", &capability).unwrap();
    xattr::set(at("dir"), "trusted.binary", b"a\nb=\0\xff").unwrap();
    fs::set_permissions(at("dir/sub"), fs::Permissions::from_mode(0o1777)).unwrap();
    mknod(&at("pipe"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).unwrap();
    mknod(&at("device"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o620), makedev(5, 300)).unwrap();
    mknod(&at("deleted"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    fs::create_dir(at("opaque")).unwrap();
    xattr::set(at("opaque"), "trusted.overlay.opaque", b"y").unwrap();
    fs::write(at(&"n".repeat(200)), "long name").unwrap();
    symlink("t".repeat(300), at("long-target")).unwrap();
}

/// A directory tree as text, to be compared.
fn describe(root: &Path, path: &Path, out: &mut String) {
    for name in names(path) {
        let path = path.join(name);
        let found = fs::symlink_metadata(&path).unwrap();
        let attributes: Vec<String> = xattr::list(&path)
            .unwrap()
            .map(|name| format!("{name:?}={:?}", xattr::get(&path, &name).unwrap().unwrap()))
            .collect();
        let content = match (found.is_file(), found.is_symlink()) {
            (true, _) => fs::read_to_string(&path).unwrap(),
            (_, true) => fs::read_link(&path).unwrap().display().to_string(),
            _ => String::new(),
        };
        let whiteout = found.mode() & 0o170_000 == 0o020_000 && found.rdev() == 0;
        // What deletes has no mode and time of its own.
        let (mode, mtime) = if whiteout { (0o020_000, 0) } else { (found.mode(), found.mtime()) };
        let links = if found.is_dir() { 0 } else { found.nlink() };
        let name = path.strip_prefix(root).unwrap().display();
        out.push_str(&format!(
            "{name} {mode:o} {}:{} {links} {} {mtime} {content:?} {attributes:?}\n",
            found.uid(),
            found.gid(),
            found.rdev()
        ));
        if found.is_dir() {
            describe(root, &path, out);
        }
    }
}

#[tokio::test]
async fn a_difference_that_is_applied_again_is_the_same() {
    let Some(world) = World::new().await else { return };
    world.image("base", "", archive(&[("deleted", FILE, "x"), ("opaque", DIRECTORY, "")])).await;
    world.create("CreateReadWrite", "c", "base").await.unwrap();
    fill(&world.layer("c").join("diff"));
    let first = world.diff("c", "base").await;
    assert_eq!(first, world.diff("c", "base").await, "the same bytes");
    world.image("again", "base", first.clone()).await;
    let tree = |id: &str| {
        let (root, mut out) = (world.layer(id).join("diff"), String::new());
        describe(&root, &root, &mut out);
        out
    };
    assert_eq!(tree("again"), tree("c"));
    assert_eq!(tree("c").lines().count(), 12, "{}", tree("c"));
    assert_eq!(world.diff("again", "base").await, first);
    let size = world.ask("DiffSize", &json!({ "ID": "again", "Parent": "base" })).await.unwrap();
    assert_eq!(size, json!({ "Size": 7 + 1 + 9 }));
    // A reader that knows nothing of us takes it.
    let mut names = Vec::new();
    for entry in tar::Archive::new(&first[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        names.push(entry.path().unwrap().display().to_string());
    }
    for name in [".wh.deleted", "opaque/.wh..wh..opq", &"n".repeat(200), "dir/file"] {
        assert!(names.iter().any(|found| found == name), "{name} is not in {names:?}");
    }
    let error = world.ask("Changes", &json!({ "ID": "c", "Parent": "" })).await.unwrap_err();
    assert!(error.contains("own parent only"), "{error}");
    let (status, bytes) = world.send("/GraphDriver.Diff", Body::from(r#"{"ID":"absent"}"#)).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(said(&bytes).unwrap_err().contains("no layer absent"));
}

#[tokio::test]
async fn deletions_are_of_what_is_below_and_hostile_attributes_are_dropped() {
    let Some(world) = World::new().await else { return };
    let below = [("dir/old", FILE, "x"), ("file", FILE, "x"), ("all/old", FILE, "x"), ("plain/old", FILE, "x")];
    world.image("base", "", archive(&below)).await;
    let above = [
        (".wh.dir", FILE, ""),
        ("dir", DIRECTORY, ""),
        ("dir/new", FILE, "y"),
        ("file", FILE, "new"),
        (".wh.file", FILE, ""),
        ("all", DIRECTORY, ""),
        ("all/.wh..wh..opq", FILE, ""),
        ("all/new", FILE, "y"),
        ("plain", DIRECTORY, ""),
        ("plain/new", FILE, "y"),
        (".wh..wh.plnk", FILE, ""),
        ("implicit/file", FILE, "y"),
    ];
    world.image("above", "base", archive(&above)).await;
    world.create("CreateReadWrite", "c", "above").await.unwrap();
    let root = world.get("c").await.unwrap();
    assert_eq!(names(&root), ["all", "dir", "file", "implicit", "plain"]);
    assert_eq!(names(&root.join("dir")), ["new"]);
    assert_eq!(names(&root.join("all")), ["new"]);
    assert_eq!(names(&root.join("plain")), ["new", "old"]);
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "new");
    assert_eq!(fs::metadata(root.join("implicit")).unwrap().mode() & 0o7777, 0o755);
    // A layer that empties the root hides all that is below.
    world.image("emptied", "above", archive(&[(".wh..wh..opq", FILE, ""), ("alone", FILE, "x")])).await;
    world.create("CreateReadWrite", "e", "emptied").await.unwrap();
    assert_eq!(names(&world.get("e").await.unwrap()), ["alone"]);

    let mut builder = tar::Builder::new(Vec::new());
    let attributes = [("SCHILY.xattr.trusted.overlay.redirect", &b"/etc"[..]), ("SCHILY.xattr.user.kept", b"1")];
    builder.append_pax_extensions(attributes).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(1024);
    bytes.extend(archive(&[("dir", DIRECTORY, "")]));
    world.image("attributes", "base", bytes).await;
    let found = world.layer("attributes").join("diff/dir");
    let listed: Vec<String> = xattr::list(found).unwrap().map(|name| name.into_string().unwrap()).collect();
    assert!(!listed.iter().any(|name| name.contains("redirect")), "{listed:?}");
}

#[tokio::test]
async fn five_hundred_layers_are_one_overlay() {
    let Some(world) = World::new().await else { return };
    let layers: Vec<Value> = (0..498).map(|number| world.publish(&format!("file-{number}"))).collect();
    world.image("thin", "", thin_json(&layers)).await;
    world.create("CreateReadWrite", "c-init", "thin").await.unwrap();
    world.create("CreateReadWrite", "c", "c-init").await.unwrap();
    assert_eq!(names(&world.get("c").await.unwrap()).len(), 498);
    world.ask("Cleanup", &json!({})).await.unwrap();
    assert!(!world.layer("c").join("merged").exists());
}
