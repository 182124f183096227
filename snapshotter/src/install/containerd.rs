//! `config.toml` of containerd, by version of the program and of the file.
//!
//! | containerd | file | what is done |
//! |---|---|---|
//! | 1.x | version 1 or 2, or none | all in place: a drop-in that mentions CRI would replace its whole section |
//! | 2.x | version 3, or none | a drop-in beside it, imported |
//! | 2.x | version 1 or 2 | all in place |
//!
//! Tried with `containerd config dump` of 2.1.9: beside a file of version 2, a drop-in of version 3 makes containerd forget all CRI
//! settings of that file (it is taken for migrated), and the snapshotter in the CRI section of version 2 is not always migrated. A
//! section of version 3 in the file of version 2 is taken as it is, and nothing gets lost.
//!
//! A drop-in must not state a higher version than the file that imports it, and replaces whole lists: what `unpack_config` has in the
//! file is repeated.

use anyhow::{Context as _, bail};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, TableLike, Value, value};

use super::difference::compare;
use super::{MARK, Settings, Version};

/// The main file.
pub const MAIN: &str = "/etc/containerd/config.toml";
/// Our drop-in.
pub const DROP_IN: &str = "/etc/containerd/conf.d/cvmfs-snapshotter.toml";
/// What imports it.
const IMPORT: &str = "/etc/containerd/conf.d/*.toml";

const CRI_1: &str = "cri";
const CRI_2: &str = "io.containerd.grpc.v1.cri";
const CRI_3: &str = "io.containerd.cri.v1.images";
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// What has to be configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wants {
    /// the proxy plugin alone
    Plugin,
    /// and the transfer service, which `ctr` and CRI of containerd 2 pull by
    Transfer,
    /// and CRI
    Kubernetes,
}

/// What to write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planned {
    /// files and their texts
    pub files: Vec<(&'static str, String)>,
    /// what the administrator should know
    pub notes: Vec<String>,
}

/// An entry of `unpack_config`, as it is in the administrator's file.
type Unpack = Table;

/// The files for a version of containerd, with the main file as it is.
pub fn plan(version: Version, main: Option<&str>, wants: Wants, settings: &Settings) -> anyhow::Result<Planned> {
    let mut document: DocumentMut = main.unwrap_or_default().parse().context("it is no TOML")?;
    let empty = main.is_none_or(|text| text.trim().is_empty());
    let latest = if version.0 < 2 { 2 } else { 3 };
    let stated = match document.get("version") {
        Some(item) => item.as_integer().context("version is no number")?,
        None if empty => latest,
        None => 1,
    };
    if version.0 < 2 && stated > 2 {
        bail!("it is of version {stated}, which containerd {version} does not read");
    }
    let mut planned = Planned::default();
    planned.notes.extend(disabled(&document, wants));
    if empty {
        document.insert("version", value(latest));
    }
    if version.0 >= 2 && stated >= 3 {
        let unpack = unpack_entries(&document);
        import(&mut document)?;
        planned.files.push((DROP_IN, drop_in(wants, &unpack, settings)));
        planned.files.push((MAIN, document.to_string()));
        return Ok(planned);
    }
    if wants >= Wants::Kubernetes {
        let old: &[&str] = &["plugins", if stated < 2 { CRI_1 } else { CRI_2 }, "containerd"];
        if version.0 < 2 {
            set(table(&mut document, old)?, "snapshotter", &settings.name);
        } else {
            if let Some(old) = existing(&mut document, old).filter(|old| old.contains_key("snapshotter")) {
                set(old, "snapshotter", &settings.name);
            }
            set(table(&mut document, &["plugins", CRI_3])?, "snapshotter", &settings.name);
        }
    }
    if wants >= Wants::Transfer && version.0 >= 2 {
        unpack(above(&mut document, &["plugins", TRANSFER])?, settings)?;
    }
    let plugin = table(&mut document, &["proxy_plugins", &settings.name])?;
    set(plugin, "type", "snapshot");
    set(plugin, "address", &settings.address);
    let exports = table(&mut document, &["proxy_plugins", &settings.name, "exports"])?;
    for (key, text) in exports_of(wants, version, settings) {
        set(exports, key, &text);
    }
    if version.0 < 2 && document.get("imports").and_then(Item::as_array).is_some_and(|imports| !imports.is_empty()) {
        planned.notes.push(
            "config.toml imports other files; one that mentions CRI replaces the whole section, with our line in it: see `containerd config dump`"
                .to_owned(),
        );
    }
    planned.files.push((MAIN, with_end(main.unwrap_or_default(), &mut document)));
    Ok(planned)
}

/// The text of a changed file. Comments at its end stay where they are, before what is added: settings that are commented out there
/// would belong to our tables otherwise, once somebody makes them settings.
fn with_end(before: &str, document: &mut DocumentMut) -> String {
    let end = document.trailing().as_str().unwrap_or_default().to_owned();
    if end.trim().is_empty() || !before.ends_with(&end) {
        return document.to_string();
    }
    document.set_trailing("");
    let text = document.to_string();
    let old: Vec<&str> = before[..before.len() - end.len()].split_inclusive('\n').collect();
    let new: Vec<&str> = text.split_inclusive('\n').collect();
    // The last line that is not only new.
    let (mut at, mut last, mut changed) = (0, 0, 0);
    for (sign, _) in compare(&old, &new) {
        match sign {
            '-' => changed += 1,
            '+' if changed > 0 => (at, last, changed) = (at + 1, at + 1, changed - 1),
            '+' => at += 1,
            _ => (at, last, changed) = (at + 1, at + 1, 0),
        }
    }
    [&new[..last].concat(), &end, &new[last..].concat()].map(String::as_str).concat()
}

/// The whole drop-in of containerd 2.
pub fn drop_in(wants: Wants, unpack: &[Unpack], settings: &Settings) -> String {
    format!("version = 3\n\n{}", tables(wants, unpack, settings))
}

/// Tables of the third version of the file.
pub fn tables(wants: Wants, entries: &[Unpack], settings: &Settings) -> String {
    let mut document = DocumentMut::new();
    if wants >= Wants::Kubernetes {
        set(table(&mut document, &["plugins", CRI_3]).expect("it is empty"), "snapshotter", &settings.name);
    }
    if wants >= Wants::Transfer {
        let transfer = above(&mut document, &["plugins", TRANSFER]).expect("it is empty");
        if !entries.is_empty() {
            transfer.insert("unpack_config", Item::ArrayOfTables(entries.iter().cloned().collect()));
        }
        unpack(transfer, settings).expect("it is a list of tables");
    }
    let plugin = table(&mut document, &["proxy_plugins", &settings.name]).expect("it is empty");
    set(plugin, "type", "snapshot");
    set(plugin, "address", &settings.address);
    let exports = table(&mut document, &["proxy_plugins", &settings.name, "exports"]).expect("it is empty");
    for (key, text) in exports_of(wants, Version(2, 1), settings) {
        set(exports, key, &text);
    }
    // The mark of each table is one for all here.
    let text = document.to_string().replace(&format!("# {MARK}\n"), "");
    format!("# {MARK}\n{}", text.trim_start())
}

/// What the plugin tells the rest of containerd.
fn exports_of(wants: Wants, version: Version, settings: &Settings) -> Vec<(&'static str, String)> {
    // Where the kubelet looks for the space that images take.
    let mut exports = vec![("root", settings.root.clone())];
    if wants >= Wants::Transfer && version.0 >= 2 {
        // The transfer service tells digests of layers then, which lead to a layer sooner than chain IDs do.
        exports.push(("enable_remote_snapshot_annotations", "true".to_owned()));
    }
    exports
}

/// Does the file switch off what is wanted?
fn disabled(document: &DocumentMut, wants: Wants) -> Option<String> {
    let list = document.get("disabled_plugins")?.as_array()?;
    let cri = |name: &str| [CRI_1, CRI_2, CRI_3].contains(&name);
    let disabled = list.iter().filter_map(Value::as_str).any(cri);
    (disabled && wants >= Wants::Kubernetes).then(|| {
        "config.toml disables CRI (disabled_plugins), so Kubernetes can't use this containerd; other clients can"
            .to_owned()
    })
}

/// Makes the main file import our drop-in.
fn import(document: &mut DocumentMut) -> anyhow::Result<()> {
    let imported = |pattern: &str| pattern == IMPORT || pattern == DROP_IN || pattern == "conf.d/*.toml";
    match document.get_mut("imports") {
        None => {
            document.insert("imports", value(Array::from_iter([IMPORT])));
        }
        Some(item) => {
            let imports = item.as_array_mut().context("imports is no list")?;
            if !imports.iter().filter_map(Value::as_str).any(imported) {
                imports.push(IMPORT);
            }
        }
    }
    Ok(())
}

/// What the file has in `unpack_config`.
fn unpack_entries(document: &DocumentMut) -> Vec<Unpack> {
    let entries =
        document.get("plugins").and_then(|item| item.get(TRANSFER)).and_then(|item| item.get("unpack_config"));
    let Some(entries) = entries.and_then(Item::as_array_of_tables) else { return Vec::new() };
    let plain = |entry: &Table| {
        let mut copy = Table::new();
        for (key, item) in entry {
            if let Some(text) = item.as_value() {
                copy.insert(key, value(text.clone().decorated(" ", "")));
            }
        }
        copy
    };
    entries.iter().map(plain).collect()
}

/// Adds us to `unpack_config`, and overlayfs if there was no list: the built-in one has nothing else.
fn unpack(transfer: &mut dyn TableLike, settings: &Settings) -> anyhow::Result<()> {
    let item = transfer.entry("unpack_config").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    let entries = item.as_array_of_tables_mut().context("unpack_config is no list of tables")?;
    let has = |entries: &ArrayOfTables, name: &str| {
        entries.iter().any(|entry| entry.get("snapshotter").and_then(Item::as_str) == Some(name))
    };
    let names: &[&str] = if entries.is_empty() { &[&settings.name, "overlayfs"] } else { &[&settings.name] };
    let mut prefix = format!("\n# {MARK}\n");
    for name in names {
        if !has(entries, name) {
            let mut entry = Table::new();
            entry.insert("platform", value("linux"));
            entry.insert("snapshotter", value(*name));
            entry.decor_mut().set_prefix(std::mem::replace(&mut prefix, "\n".to_owned()));
            entries.push(entry);
        }
    }
    Ok(())
}

/// A table that is there.
fn existing<'a>(document: &'a mut DocumentMut, path: &[&str]) -> Option<&'a mut dyn TableLike> {
    let mut at: &mut dyn TableLike = document.as_table_mut();
    for key in path {
        at = at.get_mut(key)?.as_table_like_mut()?;
    }
    Some(at)
}

/// A table, made if it is not there, with a mark; those above it appear only if something else is in them.
fn table<'a>(document: &'a mut DocumentMut, path: &[&str]) -> anyhow::Result<&'a mut dyn TableLike> {
    let (last, path_above) = path.split_last().context("a path has a key")?;
    let item = above(document, path_above)?.entry(last).or_insert_with(|| {
        let mut new = Table::new();
        new.decor_mut().set_prefix(format!("\n# {MARK}\n"));
        Item::Table(new)
    });
    item.as_table_like_mut().with_context(|| format!("{} is no table", path.join(".")))
}

/// A table above others, made if it is not there.
fn above<'a>(document: &'a mut DocumentMut, path: &[&str]) -> anyhow::Result<&'a mut dyn TableLike> {
    let mut at: &mut dyn TableLike = document.as_table_mut();
    for (depth, key) in path.iter().enumerate() {
        let item = at.entry(key).or_insert_with(|| {
            let mut new = Table::new();
            new.set_implicit(true);
            Item::Table(new)
        });
        at = item.as_table_like_mut().with_context(|| format!("{} is no table", path[..=depth].join(".")))?;
    }
    Ok(at)
}

/// Sets a value; what is around it stays as it is.
fn set(table: &mut dyn TableLike, key: &str, text: &str) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) if old.as_str() == Some(text) => {}
        Some(old) => {
            let decor = old.decor().clone();
            *old = Value::from(text);
            *old.decor_mut() = decor;
        }
        None => {
            table.insert(key, value(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn settings() -> Settings {
        Settings::of(&Config::default())
    }

    fn planned(version: Version, main: Option<&str>, wants: Wants) -> Planned {
        plan(version, main, wants, &settings()).expect("a plan")
    }

    /// The text of a file in a plan.
    fn text<'a>(planned: &'a Planned, path: &str) -> &'a str {
        planned.files.iter().find(|(found, _)| *found == path).map_or("", |(_, text)| text)
    }

    fn lookup<'a>(table: &'a toml::Table, path: &[&str]) -> Option<&'a toml::Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(table.get(*first)?, |value, key| value.get(*key))
    }

    fn parsed(text: &str) -> toml::Table {
        text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// As Debian has it.
    const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"#;
    /// As the packages of Docker have it.
    const DOCKER: &str =
        "#   Copyright\n\ndisabled_plugins = [\"cri\"]\n\n#root = \"/var/lib/containerd\"\n#[grpc]\n#  uid = 0\n";
    /// As kubeadm's documentation has it, and with an administrator's own lines.
    const KUBEADM: &str = r#"# managed by ansible
version = 2
imports = []
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9"   # pinned
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs" # for now
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
"#;
    /// As containerd 2 prints it.
    const THREE: &str = r"version = 3
root = '/var/lib/containerd'
imports = []

[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs'
  [plugins.'io.containerd.transfer.v1.local']
    max_concurrent_downloads = 3

    [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
      platform = 'linux/amd64'
      snapshotter = 'nydus'
      differ = 'walking'
";

    #[test]
    fn containerd_1_is_told_in_place() {
        for (main, cri) in
            [(None, CRI_2), (Some(""), CRI_2), (Some(DEBIAN), CRI_2), (Some(DOCKER), CRI_1), (Some(KUBEADM), CRI_2)]
        {
            for version in [Version(1, 6), Version(1, 7)] {
                let planned = planned(version, main, Wants::Kubernetes);
                assert_eq!(planned.files.len(), 1);
                let found = parsed(text(&planned, MAIN));
                let at = |path: &[&str]| lookup(&found, path).and_then(toml::Value::as_str).map(str::to_owned);
                assert_eq!(at(&["plugins", cri, "containerd", "snapshotter"]).as_deref(), Some("cvmfs-snapshotter"));
                assert_eq!(at(&["proxy_plugins", "cvmfs-snapshotter", "type"]).as_deref(), Some("snapshot"));
                let root = at(&["proxy_plugins", "cvmfs-snapshotter", "exports", "root"]);
                assert_eq!(root.as_deref(), Some("/var/lib/cvmfs-snapshotter"));
                assert_eq!(planned.notes.len(), usize::from(main == Some(DOCKER)), "{:?}", planned.notes);
            }
        }
    }

    #[test]
    fn an_administrator_s_file_keeps_every_byte_but_the_value() {
        let planned = planned(Version(1, 7), Some(KUBEADM), Wants::Kubernetes);
        let changed =
            KUBEADM.replace("snapshotter = \"overlayfs\" # for now", "snapshotter = \"cvmfs-snapshotter\" # for now");
        let found = text(&planned, MAIN);
        assert!(found.starts_with(&changed), "{found}");
        assert_eq!(
            &found[changed.len()..],
            format!(
                "\n# {MARK}\n[proxy_plugins.cvmfs-snapshotter]\ntype = \"snapshot\"\naddress = \"/run/cvmfs-snapshotter/snapshotter.sock\"\n\n# {MARK}\n[proxy_plugins.cvmfs-snapshotter.exports]\nroot = \"/var/lib/cvmfs-snapshotter\"\n"
            )
        );
    }

    #[test]
    fn comments_at_the_end_stay_before_what_is_added() {
        for (version, main) in [(Version(1, 7), DOCKER), (Version(2, 1), DOCKER)] {
            let planned = planned(version, Some(main), Wants::Kubernetes);
            assert!(text(&planned, MAIN).starts_with(&format!("{main}\n# {MARK}\n[")), "{}", text(&planned, MAIN));
        }
        let changed_last =
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"a\"\n# end\n";
        let planned = planned(Version(1, 7), Some(changed_last), Wants::Kubernetes);
        let expected = changed_last.replace("\"a\"", "\"cvmfs-snapshotter\"");
        assert!(text(&planned, MAIN).starts_with(&expected), "{}", text(&planned, MAIN));
    }

    #[test]
    fn containerd_2_gets_a_drop_in_that_is_imported() {
        for (main, import_line) in [
            (None, "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"),
            (Some("version = 3\n"), "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"),
            (Some(THREE), "imports = [\"/etc/containerd/conf.d/*.toml\"]\n"),
            (
                Some("version = 3\nimports = [\"/x/*.toml\"]\n"),
                "imports = [\"/x/*.toml\", \"/etc/containerd/conf.d/*.toml\"]\n",
            ),
            (
                Some("version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"),
                "imports = ['/etc/containerd/conf.d/*.toml']\n",
            ),
        ] {
            let planned = planned(Version(2, 1), main, Wants::Kubernetes);
            assert!(text(&planned, MAIN).contains(import_line), "{}", text(&planned, MAIN));
            let drop_in = parsed(text(&planned, DROP_IN));
            let cri = lookup(&drop_in, &["plugins", CRI_3, "snapshotter"]).and_then(toml::Value::as_str);
            assert_eq!(cri, Some("cvmfs-snapshotter"));
            let unpack =
                lookup(&drop_in, &["plugins", TRANSFER, "unpack_config"]).and_then(toml::Value::as_array).unwrap();
            let names: Vec<_> = unpack.iter().filter_map(|entry| entry.get("snapshotter")?.as_str()).collect();
            let expected =
                if main == Some(THREE) { ["nydus", "cvmfs-snapshotter"] } else { ["cvmfs-snapshotter", "overlayfs"] };
            assert_eq!(names, expected);
        }
        let plugin_only = planned(Version(2, 1), None, Wants::Plugin);
        assert!(!text(&plugin_only, DROP_IN).contains("plugins.\""), "{}", text(&plugin_only, DROP_IN));
    }

    #[test]
    fn the_drop_in_reads_well() {
        let planned = planned(Version(2, 2), None, Wants::Kubernetes);
        assert_eq!(
            text(&planned, DROP_IN),
            format!(
                r#"version = 3

# {MARK}
[plugins."io.containerd.cri.v1.images"]
snapshotter = "cvmfs-snapshotter"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "cvmfs-snapshotter"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "overlayfs"

[proxy_plugins.cvmfs-snapshotter]
type = "snapshot"
address = "/run/cvmfs-snapshotter/snapshotter.sock"

[proxy_plugins.cvmfs-snapshotter.exports]
root = "/var/lib/cvmfs-snapshotter"
enable_remote_snapshot_annotations = "true"
"#
            )
        );
    }

    #[test]
    fn an_old_file_of_containerd_2_is_told_in_place() {
        for main in [DEBIAN, DOCKER, KUBEADM] {
            let planned = planned(Version(2, 1), Some(main), Wants::Kubernetes);
            assert_eq!(planned.files.len(), 1);
            let found = parsed(text(&planned, MAIN));
            let at = |path: &[&str]| lookup(&found, path).and_then(toml::Value::as_str).map(str::to_owned);
            assert_eq!(at(&["plugins", CRI_3, "snapshotter"]).as_deref(), Some("cvmfs-snapshotter"));
            let old = at(&["plugins", CRI_2, "containerd", "snapshotter"]);
            assert_eq!(old.as_deref(), (main == KUBEADM).then_some("cvmfs-snapshotter"));
            assert!(lookup(&found, &["plugins", TRANSFER, "unpack_config"]).is_some());
        }
    }

    #[test]
    fn what_is_there_already_is_not_added_again() {
        for (version, main) in [
            (Version(1, 6), None),
            (Version(1, 7), Some(KUBEADM)),
            (Version(2, 1), Some(DEBIAN)),
            (Version(2, 1), Some(THREE)),
            (Version(2, 2), None),
        ] {
            let first = planned(version, main, Wants::Kubernetes);
            let second = planned(version, Some(text(&first, MAIN)), Wants::Kubernetes);
            assert_eq!(text(&second, MAIN), text(&first, MAIN));
            assert_eq!(text(&second, DROP_IN), text(&first, DROP_IN));
        }
    }

    #[test]
    fn what_can_t_be_changed_is_refused() {
        for (version, main, reason) in [
            (Version(1, 7), "version = 3\n", "does not read"),
            (Version(1, 7), "version = 2\nplugins = 1\n", "no table"),
            (Version(2, 1), "version = 3\nimports = 1\n", "no list"),
            (Version(2, 1), "[", "no TOML"),
            (Version(2, 1), "version = '3'", "no number"),
        ] {
            let error = plan(version, Some(main), Wants::Kubernetes, &settings()).expect_err(main);
            assert!(format!("{error:#}").contains(reason), "{error:#}");
        }
    }
}
