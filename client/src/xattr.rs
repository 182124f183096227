//! Extended attributes: those of the catalog under their own names, and information about the mount.
//!
//! Information attributes can be read from any entry; lists show them on the root directory only (or
//! everywhere, or nowhere, as configured). Some can be kept for root and certain groups; for others they are
//! not there. A stored attribute of the same name wins. Long values come in pages: `name~2` is the third page, `name@2` the same under a header line, `name~?` tells their number.
//! The kernel passes no `user.*` requests for links, hence the second name of `user.rawlink`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

use cvmfs::catalog::counters::Counter;
use cvmfs::entry::FileType;
use cvmfs::hash::{ContentHash, ObjectKind};
use cvmfs::object::{Codec, Compression, Encoding};

use crate::catalogs::{Attached, Side};
use crate::config::{Config, Network, Visibility};
use crate::fetch::http::Transport;
use crate::fetch::{Wait, Want};
use crate::fs::{FileSystem, FsError, View, file};
use crate::inode::{self, Node};

const PAGE: usize = 40_000;

/// Longer descriptions of a repository are not shown.
const MAX_META_INFO: u64 = 64 << 10;

/// Information that every entry has.
pub const GENERAL: &[&str] = &[
    "user.fqrn",
    "user.revision",
    "user.root_hash",
    "user.tag",
    "user.version",
    "user.expires",
    "user.pid",
    "user.uptime",
    "user.maxfd",
    "user.usedfd",
    "user.useddirp",
    "user.inode_max",
    "user.nclg",
    "user.host",
    "user.host_list",
    "user.proxy",
    "user.proxy_list",
    "user.external_host",
    "user.proxy_list_external",
    "user.external_timeout",
    "user.timeout",
    "user.timeout_direct",
    "user.nopen",
    "user.ndiropen",
    "user.ndownload",
    "user.hitrate",
    "user.nioerr",
    "user.timestamp_last_ioerr",
    "user.ncleanup24",
    "user.rx",
    "user.speed",
    "user.pubkeys",
    "user.logbuffer",
    "user.repo_metainfo",
    "user.repo_counters",
    "user.catalog_counters",
];

/// Information about regular files; not every file has all of it.
pub const OF_FILES: &[&str] = &[
    "user.hash",
    "user.lhash",
    "user.chunks",
    "user.chunk_list",
    "user.compression",
    "user.external_file",
    "user.external_url",
    "user.direct_io",
    "user.bundle_trigger",
];

/// Information about links.
pub const OF_LINKS: &[&str] = &["user.rawlink", "xfsroot.rawlink"];

/// Of secured repositories: who may read them.
const AUTHZ: &str = "user.authz";

/// Who asks for an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Who may see which information.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    visibility: Visibility,
    protected: BTreeSet<String>,
    privileged: BTreeSet<u32>,
}

impl Access {
    /// As configured.
    pub fn of(config: &Config) -> Access {
        Access {
            visibility: config.xattr_visibility,
            protected: config.protected_xattrs.clone(),
            privileged: config.privileged_gids.clone(),
        }
    }

    fn allows(&self, reader: Reader, name: &str) -> bool {
        !self.protected.contains(name) || reader.uid == 0 || self.privileged.contains(&reader.gid)
    }
}

impl FileSystem {
    /// Value of an attribute, for somebody who may read everything.
    pub fn getxattr(&self, inode: u32, name: &[u8], wait: Wait) -> Result<Vec<u8>, FsError> {
        self.getxattr_as(Reader { uid: 0, gid: 0 }, inode, name, wait)
    }

    /// Value of an attribute.
    pub fn getxattr_as(&self, reader: Reader, inode: u32, name: &[u8], wait: Wait) -> Result<Vec<u8>, FsError> {
        let view = self.view();
        let node = self.current(&view, inode, wait)?;
        if let Some(packed) = &node.entry.xattrs
            && let Some(value) = cvmfs::xattr::unpack(packed).remove(name)
        {
            return Ok(value);
        }
        let name = std::str::from_utf8(name).map_err(|_| FsError::NoAttribute)?;
        if !name.starts_with("user.") && !name.starts_with("xfsroot.") {
            return Err(FsError::NoAttribute);
        }
        let (name, page) = match name.rsplit_once(['~', '@']) {
            Some((plain, page)) => (plain, Some((page, name.as_bytes()[plain.len()] == b'@'))),
            None => (name, None),
        };
        if !self.access.allows(reader, name) {
            return Err(FsError::NoAttribute);
        }
        let value = self.information(&view, &node, name, wait)?.ok_or(FsError::NoAttribute)?;
        select_page(&value, page).ok_or(FsError::NoAttribute)
    }

    /// Names of attributes, in order.
    pub fn listxattr(&self, inode: u32, wait: Wait) -> Result<Vec<Vec<u8>>, FsError> {
        let view = self.view();
        let node = self.current(&view, inode, wait)?;
        let mut names: BTreeSet<Vec<u8>> = node.entry.xattrs().into_keys().collect();
        let shown = match self.access.visibility {
            Visibility::Never => false,
            Visibility::Always => true,
            Visibility::RootOnly => inode == inode::ROOT,
        };
        if shown {
            let mut add = |more: &[&str]| names.extend(more.iter().map(|name| name.as_bytes().to_vec()));
            add(GENERAL);
            for name in OF_FILES.iter().chain(OF_LINKS).copied() {
                let has = match name {
                    "user.lhash" => {
                        file::whole(&node.path, &node.entry).is_some() && node.entry.file_type() == FileType::Regular
                    }
                    "user.external_url" => self.external_url(&node).is_some(),
                    name => about_entry(&node, name).is_some(),
                };
                if has {
                    add(&[name]);
                }
            }
            if authz(&view).is_some() {
                add(&[AUTHZ]);
            }
        }
        Ok(names.into_iter().collect())
    }

    fn information(&self, view: &View, node: &Node, name: &str, wait: Wait) -> Result<Option<Vec<u8>>, FsError> {
        match name {
            "user.lhash" => self.hash_of_cached(node, wait),
            "user.external_url" => Ok(self.external_url(node).map(String::into_bytes)),
            "user.repo_metainfo" => self.meta_info(view, wait).map(Some),
            "user.catalog_counters" => {
                let side = if node.entry.is_directory() { Side::Children } else { Side::Entry };
                let attached = view.revision.catalogs.find(&node.path, side, wait);
                let attached = attached.map_err(|source| match source {
                    crate::catalogs::AttachError::WouldBlock => FsError::WouldBlock,
                    source => FsError::Catalog { path: node.path.clone(), source },
                })?;
                let head =
                    format!("catalog_hash: {}\ncatalog_mountpoint: {}\n", attached.hash(), attached.mountpoint());
                Ok(Some((head + &counters(&attached)).into_bytes()))
            }
            AUTHZ => Ok(authz(view).map(String::into_bytes)),
            name if OF_FILES.contains(&name) || OF_LINKS.contains(&name) => Ok(about_entry(node, name)),
            name => Ok(self.general(view, name).map(String::into_bytes)),
        }
    }

    /// Where an external file comes from.
    fn external_url(&self, node: &Node) -> Option<String> {
        let transport = self.objects().external().filter(|_| node.entry.flags.is_external())?;
        Some(format!("{}{}", current_host(transport), node.path))
    }

    /// Hash of what the cache has of a file: that of the catalog when the bytes still make the same object.
    fn hash_of_cached(&self, node: &Node, wait: Wait) -> Result<Option<Vec<u8>>, FsError> {
        let Some(want) = file::whole(&node.path, &node.entry).filter(|_| node.entry.file_type() == FileType::Regular)
        else {
            return Ok(None);
        };
        let Some(content) = self.objects().cached(&want) else { return Ok(Some(b"Not in cache".to_vec())) };
        if wait == Wait::No {
            // Hashing takes as long as a download.
            return Err(FsError::WouldBlock);
        }
        let hash = rehash(&want, &content).map_err(|source| FsError::Read { path: node.path.clone(), source })?;
        Ok(Some(hash.to_string().into_bytes()))
    }

    /// What the publisher says about the repository.
    fn meta_info(&self, view: &View, wait: Wait) -> Result<Vec<u8>, FsError> {
        let Some(manifest) = &view.revision.manifest else { return Ok(b"manifest not available".to_vec()) };
        let Some(hash) = manifest.meta_info else { return Ok(b"no metainfo available".to_vec()) };
        let want = Want::bounded(hash.object(ObjectKind::MetaInfo), MAX_META_INFO);
        let failed = |source| FsError::Content { path: cvmfs::path::RepoPath::ROOT, source };
        let file = self.objects().open(&want, wait).map_err(failed)?.ok_or(FsError::WouldBlock)?;
        read_all(&file).map_err(|source| FsError::Read { path: cvmfs::path::RepoPath::ROOT, source })
    }

    fn general(&self, view: &View, name: &str) -> Option<String> {
        let (stats, info) = (self.stats(), self.info());
        let transport = self.objects().transport();
        let (inodes, files, directories, highest) = self.held();
        let seconds = |time: std::time::Duration| time.as_secs().to_string();
        Some(match name {
            "user.fqrn" => info.fqrn.clone(),
            "user.revision" => view.revision.number.to_string(),
            "user.root_hash" => view.revision.root_hash().to_string(),
            "user.tag" => view.revision.tag.clone().unwrap_or_default(),
            "user.version" => format!("{}.0", env!("CARGO_PKG_VERSION")),
            "user.expires" => match *info.next_check.read() {
                Some(at) => at.saturating_duration_since(Instant::now()).as_secs().div_ceil(60).to_string(),
                None => "never (fixed root catalog)".into(),
            },
            "user.pid" => std::process::id().to_string(),
            "user.uptime" => (info.since.elapsed().as_secs() / 60).to_string(),
            "user.maxfd" => {
                nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok()?.0.to_string()
            }
            "user.usedfd" => files.to_string(),
            "user.useddirp" => directories.to_string(),
            "user.inode_max" => highest.to_string(),
            "user.nclg" => view.revision.catalogs.count().to_string(),
            "user.host" => current_host(transport),
            "user.host_list" => transport.routes().servers().join(";"),
            "user.proxy" => current_proxy(transport),
            "user.proxy_list" => print_proxies(transport.routes().network()),
            "user.external_host" => self.objects().external().map(current_host).unwrap_or_default(),
            "user.proxy_list_external" => {
                self.objects().external().map(|t| print_proxies(t.routes().network())).unwrap_or_default()
            }
            // As it is configured, whether or not there are external files.
            "user.external_timeout" => seconds(self.objects().external_limits().timeout_proxy),
            "user.logbuffer" => crate::log::recent(),
            "user.timeout" => seconds(transport.routes().limits().timeout_proxy),
            "user.timeout_direct" => seconds(transport.routes().limits().timeout_direct),
            "user.nopen" => stats.opens.get().to_string(),
            "user.ndiropen" => stats.directory_opens.get().to_string(),
            "user.ndownload" => stats.downloads.get().to_string(),
            "user.hitrate" => format!("{}.{:03}", stats.hit_rate() / 1000, stats.hit_rate() % 1000),
            "user.nioerr" => stats.io_errors.get().to_string(),
            "user.timestamp_last_ioerr" => stats.last_io_error().to_string(),
            "user.ncleanup24" => self.objects().cache().evictions().to_string(),
            "user.rx" => (stats.received.get() / 1024).to_string(),
            "user.speed" => stats.speed().to_string(),
            "user.pubkeys" => info.master_keys.clone(),
            "user.repo_counters" => counters(view.revision.catalogs.root()),
            // Not among the names of the reference client: what the kernel holds, and where programs find the control
            // socket of a mount whose process they do not know.
            "user.inodes" => inodes.to_string(),
            "user.control" => info.control.get()?.display().to_string(),
            _ => return None,
        })
    }
}

/// Server in use.
pub(crate) fn current_host(transport: &Transport) -> String {
    transport.routes().current(Instant::now()).host.to_string()
}

/// Proxy in use.
pub(crate) fn current_proxy(transport: &Transport) -> String {
    transport.routes().current(Instant::now()).proxy_name().to_owned()
}

fn print_proxies(network: &Network) -> String {
    let group = |group: &Vec<Option<String>>| {
        group.iter().map(|p| p.as_deref().unwrap_or("DIRECT")).collect::<Vec<_>>().join("|")
    };
    network.proxies.iter().map(group).collect::<Vec<_>>().join(";")
}

fn about_entry(node: &Node, name: &str) -> Option<Vec<u8>> {
    let entry = &node.entry;
    if OF_LINKS.contains(&name) {
        return (entry.file_type() == FileType::Symlink).then(|| entry.symlink.clone());
    }
    if entry.file_type() != FileType::Regular {
        return None;
    }
    let flag = |set: bool| if set { "1" } else { "0" }.to_owned();
    let text = match name {
        "user.hash" => entry.content?.to_string(),
        "user.chunks" => node.chunks.len().max(1).to_string(),
        "user.chunk_list" => {
            let mut list = String::from("hash,offset,size\n");
            for chunk in node.chunks.iter() {
                let _ = writeln!(list, "{},{},{}", chunk.hash, chunk.offset, chunk.size);
            }
            if let (true, Some(hash)) = (node.chunks.is_empty(), entry.content) {
                let _ = writeln!(list, "{hash},0,{}", entry.size);
            }
            list
        }
        "user.compression" => match entry.compression() {
            Compression::Zlib => "zlib".into(),
            Compression::None => "none".into(),
        },
        "user.external_file" => flag(entry.flags.is_external()),
        "user.direct_io" => flag(entry.flags.is_direct_io()),
        "user.bundle_trigger" => flag(entry.flags.is_bundle_trigger()),
        _ => return None,
    };
    Some(text.into_bytes())
}

/// The membership that a secured repository asks for.
fn authz(view: &View) -> Option<String> {
    view.revision.catalogs.root().catalog().property("voms_authz").ok().flatten()
}

fn read_all(file: &std::fs::File) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Hash that the plain bytes of an object have when they are stored again. Which compressor the publisher used is
/// not known; one that gives the object's own hash proves that the bytes are right.
fn rehash(want: &Want, content: &std::fs::File) -> std::io::Result<ContentHash> {
    let codecs: &[Codec] = match want.compression {
        Compression::None => &[Codec::Store],
        Compression::Zlib => &[Codec::default(), Codec::REFERENCE],
    };
    let mut hash = want.object.hash;
    for codec in codecs {
        let encoding = Encoding { algorithm: want.object.hash.algorithm, codec: *codec };
        let mut plain = Positioned { file: content, at: 0 };
        (hash, _) = cvmfs::object::encode_file(encoding, &mut plain, &mut std::io::sink())?;
        if hash == want.object.hash {
            break;
        }
    }
    Ok(hash)
}

/// Reads a file that others read at the same time.
struct Positioned<'a> {
    file: &'a std::fs::File,
    at: u64,
}

impl std::io::Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// `name,value` lines, each the sum over the catalog and everything below it.
fn counters(attached: &Attached) -> String {
    let Ok((counters, _)) = attached.catalog().counters_and_missing() else { return String::new() };
    let total = counters.total();
    Counter::ALL.iter().map(|counter| format!("{},{}\n", counter.name(), total[*counter])).collect()
}

fn select_page(value: &[u8], page: Option<(&str, bool)>) -> Option<Vec<u8>> {
    let pages = value.len().div_ceil(PAGE).max(1);
    let cut = |page: usize| value.chunks(PAGE).nth(page).or((page == 0).then_some(&[][..]));
    match page {
        None => cut(0).map(<[u8]>::to_vec),
        Some(("?", _)) => Some(format!("num_pages, {pages}").into_bytes()),
        Some((number, header)) => {
            let number: usize = number.parse().ok()?;
            let head = if header { format!("# page {number} of {pages}\n") } else { String::new() };
            cut(number).map(|page| [head.as_bytes(), page].concat())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_have_pages() {
        let value = vec![b'x'; PAGE + 5];
        assert_eq!(select_page(&value, None).unwrap().len(), PAGE);
        assert_eq!(select_page(&value, Some(("1", false))).unwrap(), b"xxxxx");
        assert_eq!(select_page(&value, Some(("1", true))).unwrap(), b"# page 1 of 2\nxxxxx");
        assert_eq!(select_page(&value, Some(("?", false))).unwrap(), b"num_pages, 2");
        assert_eq!(select_page(&value, Some(("2", false))), None);
        assert_eq!(select_page(b"", None).unwrap(), b"");
    }
}
