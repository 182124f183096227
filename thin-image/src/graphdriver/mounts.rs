//! Mounting stacks. Whether one is mounted, only the kernel knows.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use mountinfo::MountTable;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::jail;
use crate::plugin::Refusal;

/// Features that would make a writable directory something else than the difference to what is below. A kernel may have them on.
const OFF: [&str; 3] = ["index", "redirect_dir", "metacopy"];

/// A stack to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack<'a> {
    /// directories below, as names relative to the layer's directory, the nearest first
    pub lowers: &'a [String],
    /// with the layer's own files as the writable directory?
    pub writable: bool,
    /// SELinux label
    pub label: &'a str,
}

/// Mount options, as the kernel reads them.
pub fn options(stack: &Stack<'_>, off: &[&str]) -> String {
    let mut words = vec![format!("lowerdir={}", stack.lowers.join(":"))];
    if stack.writable {
        words.push("upperdir=diff,workdir=work".to_owned());
        words.extend(off.iter().map(|name| format!("{name}=off")));
    }
    if !stack.label.is_empty() {
        words.push(format!("context=\"{}\"", stack.label));
    }
    words.join(",")
}

/// Those of the unwanted features that this kernel has.
fn present() -> Vec<&'static str> {
    let known = |name: &&str| Path::new("/sys/module/overlay/parameters").join(name).exists();
    OFF.into_iter().filter(known).collect()
}

/// Mounts a stack on `merged` in the directory of a layer.
pub fn mount_stack(layer: &Path, stack: &Stack<'_>) -> Result<(), Refusal> {
    let merged = layer.join("merged");
    match fs::create_dir(&merged) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Refusal::of(format!("cannot make {}", merged.display()))(error));
        }
        _ => {}
    }
    let options = options(stack, &present());
    jail::beside(layer, || {
        mount(Some("overlay"), "merged", Some("overlay"), MsFlags::empty(), Some(options.as_str())).map_err(
            Refusal::of(format!(
                "cannot mount {} directories on {}; the kernel's log says more",
                stack.lowers.len(),
                merged.display()
            )),
        )
    })
}

/// Unmounts whatever is mounted there, also if somebody has a file open in it, and takes the directory away.
pub fn unmount(merged: &Path) -> Result<(), Refusal> {
    while is_mounted(merged)? {
        umount2(merged, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(Refusal::of(format!("cannot unmount {}", merged.display())))?;
    }
    let _ = fs::remove_dir(merged);
    Ok(())
}

/// Is something mounted on this path?
pub fn is_mounted(path: &Path) -> Result<bool, Refusal> {
    Ok(table()?.at(path).next().is_some())
}

/// Does another process see what is mounted on this path, in a mount namespace of its own? A running container does.
pub fn is_used_elsewhere(path: &Path) -> Result<bool, Refusal> {
    let own = table()?;
    let Some(device) = own.at(path).next_back().map(|mount| mount.device) else { return Ok(false) };
    let ours = fs::read_link("/proc/thread-self/ns/mnt").ok();
    let mut seen: Vec<PathBuf> = ours.into_iter().collect();
    let processes = fs::read_dir("/proc").map_err(Refusal::of("cannot read /proc"))?;
    for process in processes.flatten().filter(|entry| entry.file_name().as_bytes()[0].is_ascii_digit()) {
        let Ok(namespace) = fs::read_link(process.path().join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        let Ok(table) = MountTable::of(&process.path()) else { continue };
        if table.mounts.iter().any(|mount| mount.device == device) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn table() -> Result<MountTable, Refusal> {
    MountTable::own().map_err(Refusal::of("cannot read the kernel's table of mounts"))
}

/// A label that can stand between quotes.
pub fn is_label(label: &str) -> bool {
    label.len() <= 512 && OsStr::new(label).as_bytes().iter().all(|&b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_hundred_directories_fit_into_a_page() {
        let lowers: Vec<String> = (0..super::super::home::MAX_LOWERS).map(|number| format!("l/{number}")).collect();
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        let stack = Stack { lowers: &lowers, writable: true, label };
        let text = options(&stack, &OFF);
        assert!(text.len() < 4096, "{}", text.len());
        assert!(text.starts_with("lowerdir=l/0:l/1:l/2:") && text.ends_with(&format!("context=\"{label}\"")), "{text}");
        assert!(text.contains(",upperdir=diff,workdir=work,index=off,redirect_dir=off,metacopy=off,"), "{text}");
        let view = Stack { lowers: &lowers[..2], writable: false, label: "" };
        assert_eq!(options(&view, &OFF), "lowerdir=l/0:l/1");
    }

    #[test]
    fn labels_can_t_add_options() {
        assert!(is_label("") && is_label("system_u:object_r:container_file_t:s0:c1,c2"));
        assert!(!is_label("x\",upperdir=/etc") && !is_label("a b") && !is_label("x\\"));
    }
}
