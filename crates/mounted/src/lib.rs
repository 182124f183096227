//! Mounted repositories, as those see them who start containers: read through the kernel, by the paths of `image::layout`.
//!
//! Everything but [`startup::announce`] blocks, for as long as the client of the repository does. What is published is input
//! from outside: no link is followed but those of the index, which are parsed and not followed either, and what is read is
//! bounded.

pub mod bare;
pub mod startup;

use std::fs;
use std::io;
use std::io::Read as _;
use std::path::Path;

use image::digest::{ChainId, ImageId};
use image::layout::{IndexKey, Layout, OwnedPath};
use image::manifest::Config;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// From this many directories on a start from the flat is faster than one from the layers: `make bench-flat`.
pub const MANY_DIRECTORIES: usize = 4;
/// Longest record that is read, in bytes.
const MAX_RECORD: u64 = 64 << 20;

/// The image that is a whole stack of layers, by the index.
pub fn image_of(repository: &Path, stack: ChainId) -> io::Result<Option<ImageId>> {
    let (layout, from) = (Layout::new(), OwnedPath::Index(IndexKey::Image(stack)));
    let target = match fs::read_link(repository.join(layout.print(&from))) {
        Ok(target) => target,
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(target.to_str().and_then(|target| layout.parse_link(&from, target)).and_then(|path| match path {
        OwnedPath::Flat(image) => Some(image),
        _ => None,
    }))
}

/// The image whose flat stands for a whole stack of layers. Its config has to make that stack, and a cover has to be there:
/// without one the flat shows more than the image.
pub fn flat(repository: &Path, stack: ChainId) -> io::Result<Option<ImageId>> {
    let Some(image) = image_of(repository, stack)? else { return Ok(None) };
    let layout = Layout::new();
    let Some(bytes) = record(repository, &layout.print(&OwnedPath::Index(IndexKey::Config(image))))? else {
        return Ok(None);
    };
    let config = Config::parse(&bytes).ok().filter(|_| ImageId::of(&bytes) == image);
    if config.and_then(|config| ChainId::stack(&config.diff_ids).last().copied()) != Some(stack) {
        return Ok(None);
    }
    for path in [OwnedPath::FlatCover(image), OwnedPath::Flat(image)] {
        if !is_directory(repository, &layout.print(&path))? {
            return Ok(None);
        }
    }
    Ok(Some(image))
}

/// A small file; nothing if it is absent.
pub fn record(repository: &Path, path: &str) -> io::Result<Option<Vec<u8>>> {
    // A pipe would wait for a writer.
    let Some(file) = open(repository, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)? else { return Ok(None) };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_RECORD + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= MAX_RECORD))
}

/// Whether there is such a directory.
pub fn is_directory(repository: &Path, path: &str) -> io::Result<bool> {
    Ok(open(repository, path, OFlag::O_PATH | OFlag::O_DIRECTORY)?.is_some())
}

/// Opens what is below a repository without following any link; nothing if it is absent.
pub fn open(repository: &Path, path: &str, flags: OFlag) -> io::Result<Option<fs::File>> {
    let root = fs::File::open(repository)?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(&root, path, how).map_err(io::Error::from) {
        Ok(found) => Ok(Some(found.into())),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an error says that nothing of ours is there.
pub fn is_absence(error: &io::Error) -> bool {
    use nix::libc::{ELOOP, ENOTDIR, EXDEV};
    // A link or a file where a directory should be is as good as nothing; it is not what we published.
    error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(ELOOP | ENOTDIR | EXDEV))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use image::digest::DiffId;

    use super::*;

    fn write(repository: &Path, path: &OwnedPath, bytes: &[u8]) {
        let path = repository.join(Layout::new().print(path));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn link(repository: &Path, stack: ChainId, image: ImageId) {
        let (layout, from) = (Layout::new(), OwnedPath::Index(IndexKey::Image(stack)));
        let path = repository.join(layout.print(&from));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(layout.link(&from, &OwnedPath::Flat(image)), path).unwrap();
    }

    #[test]
    fn a_flat_stands_for_the_stack_of_its_config_and_with_its_cover_only() {
        let directory = tempfile::tempdir().unwrap();
        let repository = directory.path();
        let (diff, layout) = (DiffId::of(b"tar"), Layout::new());
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#
        );
        let (image, stack) = (ImageId::of(config.as_bytes()), ChainId::on(None, diff));
        assert_eq!((image_of(repository, stack).unwrap(), flat(repository, stack).unwrap()), (None, None));
        link(repository, stack, image);
        assert_eq!((image_of(repository, stack).unwrap(), flat(repository, stack).unwrap()), (Some(image), None));
        write(repository, &OwnedPath::Index(IndexKey::Config(image)), config.as_bytes());
        fs::create_dir_all(repository.join(layout.print(&OwnedPath::Flat(image)))).unwrap();
        assert_eq!(flat(repository, stack).unwrap(), None, "without a cover");
        fs::create_dir_all(repository.join(layout.print(&OwnedPath::FlatCover(image)))).unwrap();
        assert_eq!(flat(repository, stack).unwrap(), Some(image));
        let other = ChainId::on(None, DiffId::of(b"another tar"));
        link(repository, other, image);
        assert_eq!((image_of(repository, other).unwrap(), flat(repository, other).unwrap()), (Some(image), None));
        write(repository, &OwnedPath::Index(IndexKey::Config(image)), b"{}");
        assert_eq!(flat(repository, stack).unwrap(), None, "another config");
    }
}
