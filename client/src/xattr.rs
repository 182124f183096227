//! Extended attributes: those of the catalog under their own names, and information about the mount.
//!
//! Information attributes can be read from any entry; lists show them on the root directory only (or
//! everywhere, or nowhere, as configured). A stored attribute of the same name wins. Long values come in
//! pages: `name~2` is the third page, `name@2` the same under a header line, `name~?` tells their number.
//! The kernel passes no `user.*` requests for links, hence the second name of `user.rawlink`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Instant;

use cvmfs::catalog::counters::Counter;
use cvmfs::entry::FileType;
use cvmfs::object::Compression;

use crate::catalogs::{Attached, Side};
use crate::config::{Network, Visibility};
use crate::fetch::Wait;
use crate::fetch::http::Transport;
use crate::fs::{FileSystem, FsError, View};
use crate::inode::{self, Node};

const PAGE: usize = 40_000;

/// Information that every entry has.
const GENERAL: [&str; 32] = [
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
    "user.repo_counters",
];

/// Information about regular files.
const OF_FILES: [&str; 7] = [
    "user.hash",
    "user.chunks",
    "user.chunk_list",
    "user.compression",
    "user.external_file",
    "user.external_url",
    "user.direct_io",
];

/// Information about links.
const OF_LINKS: [&str; 2] = ["user.rawlink", "xfsroot.rawlink"];

const CATALOG_COUNTERS: &str = "user.catalog_counters";

impl FileSystem {
    /// Value of an attribute.
    pub fn getxattr(&self, inode: u32, name: &[u8], wait: Wait) -> Result<Vec<u8>, FsError> {
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
        let value = self.information(&view, &node, name, wait)?.ok_or(FsError::NoAttribute)?;
        select_page(&value, page).ok_or(FsError::NoAttribute)
    }

    /// Names of attributes, in order.
    pub fn listxattr(&self, inode: u32, wait: Wait) -> Result<Vec<Vec<u8>>, FsError> {
        let view = self.view();
        let node = self.current(&view, inode, wait)?;
        let mut names: BTreeSet<Vec<u8>> = node.entry.xattrs().into_keys().collect();
        let shown = match self.visibility {
            Visibility::Never => false,
            Visibility::Always => true,
            Visibility::RootOnly => inode == inode::ROOT,
        };
        if shown {
            let mut add = |more: &[&str]| names.extend(more.iter().map(|name| name.as_bytes().to_vec()));
            add(&GENERAL);
            add(&[CATALOG_COUNTERS]);
            for name in OF_FILES.into_iter().chain(OF_LINKS) {
                if about_entry(&node, name).is_some() {
                    add(&[name]);
                }
            }
        }
        Ok(names.into_iter().collect())
    }

    fn information(&self, view: &View, node: &Node, name: &str, wait: Wait) -> Result<Option<Vec<u8>>, FsError> {
        if OF_FILES.contains(&name) || OF_LINKS.contains(&name) {
            if name == "user.external_url" {
                let url =
                    self.objects().external().map(|t| t.routes().host(t.routes().current(Instant::now())).to_owned());
                let is_external = node.entry.flags.is_external();
                return Ok(url.filter(|_| is_external).map(|url| format!("{url}{}", node.path).into_bytes()));
            }
            return Ok(about_entry(node, name));
        }
        if name == CATALOG_COUNTERS {
            let side = if node.entry.is_directory() { Side::Children } else { Side::Entry };
            let attached = view.revision.catalogs.find(&node.path, side, wait);
            let attached = attached.map_err(|source| match source {
                crate::catalogs::AttachError::WouldBlock => FsError::WouldBlock,
                source => FsError::Catalog { path: node.path.clone(), source },
            })?;
            let head = format!("catalog_hash: {}\ncatalog_mountpoint: {}\n", attached.hash(), attached.mountpoint());
            return Ok(Some((head + &counters(&attached)).into_bytes()));
        }
        Ok(self.general(view, name).map(String::into_bytes))
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
            "user.tag" => String::new(),
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
            "user.host_list" => transport.routes().network().servers.join(";"),
            "user.proxy" => current_proxy(transport),
            "user.proxy_list" => print_proxies(transport.routes().network()),
            "user.external_host" => self.objects().external().map(current_host)?,
            "user.proxy_list_external" => self.objects().external().map(|t| print_proxies(t.routes().network()))?,
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
            // Not among the names of the reference client: what the kernel holds.
            "user.inodes" => inodes.to_string(),
            _ => return None,
        })
    }
}

/// Server in use.
pub(crate) fn current_host(transport: &Transport) -> String {
    let routes = transport.routes();
    routes.host(routes.current(Instant::now())).to_owned()
}

/// Proxy in use.
pub(crate) fn current_proxy(transport: &Transport) -> String {
    let routes = transport.routes();
    routes.proxy(routes.current(Instant::now())).unwrap_or("DIRECT").to_owned()
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
        _ => return None,
    };
    Some(text.into_bytes())
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
