//! Work inside a layer's directory, from where nothing else can be reached.
//!
//! Archives come from registries, and a container may change its files while they are looked at. So whoever walks through a layer does it
//! in a thread whose root directory is the layer's: links lead where they lead in a container, and `..` of the root is the root.

use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot};

use crate::plugin::Refusal;

/// Runs `work` in a thread of its own whose root is `root`, and waits for it.
pub fn within<T: Send>(root: &Path, work: impl FnOnce() -> Result<T, Refusal> + Send) -> Result<T, Refusal> {
    alone(|| {
        chroot(root).and_then(|()| chdir("/")).map_err(Refusal::of(format!("cannot enter {}", root.display())))?;
        work()
    })
}

/// Runs `work` in a thread of its own whose working directory is `directory`, and waits for it.
pub fn beside<T: Send>(directory: &Path, work: impl FnOnce() -> Result<T, Refusal> + Send) -> Result<T, Refusal> {
    alone(|| {
        chdir(directory).map_err(Refusal::of(format!("cannot enter {}", directory.display())))?;
        work()
    })
}

/// A thread that shares root, working directory and file mode mask with no other.
fn alone<T: Send>(work: impl FnOnce() -> Result<T, Refusal> + Send) -> Result<T, Refusal> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS).map_err(Refusal::of("cannot separate a thread"))?;
            nix::sys::stat::umask(nix::sys::stat::Mode::empty());
            work()
        });
        thread.join().unwrap_or_else(|_| Err(Refusal::new("the plugin failed; this is a defect of it")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_nowhere_else() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: another root directory needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", directory.path().join("link")).unwrap();
        std::os::unix::fs::symlink("../../../..", directory.path().join("up")).unwrap();
        let listed = within(directory.path(), || {
            let names = |path: &str| std::fs::read_dir(path).unwrap().count();
            Ok((names("/"), names("/link"), names("/up"), Path::new("/link/etc").exists()))
        });
        assert_eq!(listed, Ok((2, 2, 2, false)));
        assert!(Path::new("/etc").exists(), "other threads keep their root");
        let here = std::env::current_dir().unwrap();
        assert!(beside(directory.path(), || Ok(Path::new("up").is_symlink())).unwrap());
        assert_eq!(std::env::current_dir().unwrap(), here);
        assert!(within::<()>(&directory.path().join("absent"), || Ok(())).is_err());
    }
}
