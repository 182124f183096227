//! Mounting stacks. Whether one is mounted, only the kernel knows.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

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
    Ok(devices(&table("/proc/thread-self/mountinfo")?, path).next().is_some())
}

/// Does another process see what is mounted on this path, in a mount namespace of its own? A running container does.
pub fn is_used_elsewhere(path: &Path) -> Result<bool, Refusal> {
    let own = table("/proc/thread-self/mountinfo")?;
    let Some(device) = devices(&own, path).last().map(<[u8]>::to_vec) else { return Ok(false) };
    let ours = fs::read_link("/proc/thread-self/ns/mnt").ok();
    let mut seen: Vec<PathBuf> = ours.into_iter().collect();
    let processes = fs::read_dir("/proc").map_err(Refusal::of("cannot read /proc"))?;
    for process in processes.flatten().filter(|entry| entry.file_name().as_bytes()[0].is_ascii_digit()) {
        let Ok(namespace) = fs::read_link(process.path().join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        let Ok(table) = fs::read(process.path().join("mountinfo")) else { continue };
        if table.split(|&b| b == b'\n').any(|line| line.split(|&b| b == b' ').nth(2) == Some(&device)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn table(path: &str) -> Result<Vec<u8>, Refusal> {
    fs::read(path).map_err(Refusal::of(format!("cannot read {path}")))
}

/// The devices of what is mounted on a path, the visible one last.
fn devices<'a>(table: &'a [u8], path: &'a Path) -> impl Iterator<Item = &'a [u8]> {
    table.split(|&b| b == b'\n').filter_map(move |line| {
        let mut fields = line.split(|&b| b == b' ');
        let (device, place) = (fields.nth(2)?, fields.nth(1)?);
        (unescape(place).as_os_str() == path.as_os_str()).then_some(device)
    })
}

/// The kernel writes blanks, tabs, line ends and backslashes as `\` and three octal digits.
fn unescape(field: &[u8]) -> std::ffi::OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                out.push(value);
                rest = &after[3..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(out)
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
    fn the_kernel_s_table_is_read() {
        let table = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            40 22 0:50 / /a\\040b/merged rw shared:1 - overlay overlay rw\n\
            41 40 0:51 / /a\\040b/merged rw - overlay overlay rw\n";
        let found = |path: &str| devices(table, Path::new(path)).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!(found("/a b/merged"), [b"0:50".to_vec(), b"0:51".to_vec()]);
        assert_eq!(found("/"), [b"8:1".to_vec()]);
        assert_eq!(found("/a"), Vec::<Vec<u8>>::new());
        assert_eq!(unescape(b"a\\134\\9\\"), OsStr::new("a\\\\9\\"));
    }

    #[test]
    fn labels_can_t_add_options() {
        assert!(is_label("") && is_label("system_u:object_r:container_file_t:s0:c1,c2"));
        assert!(!is_label("x\",upperdir=/etc") && !is_label("a b") && !is_label("x\\"));
    }
}
