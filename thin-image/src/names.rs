//! What users call an image, and where a repository has it.
//!
//! ```text
//! debian:stable                                registry.hub.docker.com/library/debian:stable
//! https://quay.io/example/tool:1.4@sha256:…    quay.io/example/tool:1.4, if it is that image
//! local/app:1                                  that, if the repository has it, else of Docker Hub
//! /cvmfs/images.example.org/quay.io/tool:1     the same in the repository of the path
//! ```

use std::path::{Path, PathBuf};

use image::digest::ManifestDigest;
use image::layout::{Layout, OwnedPath};
use image::platform::PlatformDirectory;
use image::reference::{PublicName, Reference, ReferenceError};

/// An image that is wanted from a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// as it was written
    pub text: String,
    /// names to look for, the first one that is published counts
    pub names: Vec<PublicName>,
    /// only for these machines, if a path said so
    pub place: Option<PlatformDirectory>,
    /// only this manifest or index
    pub digest: Option<ManifestDigest>,
}

impl Wanted {
    /// Parses the name of an image, with its tag or digest.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let reference = Reference::parse(text);
        let mut names: Vec<PublicName> = PublicName::parse(text).into_iter().collect();
        match &reference {
            Ok(reference) => names.push(reference.public_path()?),
            Err(_) if !names.is_empty() => {}
            Err(error) => return Err(error.clone()),
        }
        names.dedup();
        let digest = reference.ok().and_then(|reference| reference.digest());
        Ok(Self { text: text.to_owned(), names, place: None, digest })
    }
}

/// A path below the directory of repositories, taken apart: name of the repository and the image.
///
/// `cvmfs` is where repositories are mounted. Nothing: it is another path.
pub fn published_path(path: &Path, cvmfs: &Path) -> Option<(String, Wanted)> {
    let (repository, rest) = path.strip_prefix(cvmfs).ok()?.to_str()?.split_once('/')?;
    match Layout::new().parse(rest.trim_end_matches('/'))? {
        OwnedPath::Public { platform, name } | OwnedPath::Image { platform, name } => {
            let wanted = Wanted { text: path.display().to_string(), names: vec![name], place: platform, digest: None };
            Some((repository.to_owned(), wanted))
        }
        _ => None,
    }
}

/// The tag at the end of such a name.
pub fn tag_of(engine_name: &str) -> &str {
    engine_name.rsplit_once(':').map_or("latest", |(_, tag)| tag)
}

/// Where a repository is mounted unless somebody says otherwise.
pub fn mountpoint(cvmfs: &Path, repository: &str) -> PathBuf {
    cvmfs.join(repository)
}

#[cfg(test)]
mod tests {
    use image::podman::engine_name;

    use super::*;

    fn names(text: &str) -> Vec<String> {
        Wanted::parse(text).unwrap().names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_looked_for_where_the_publisher_puts_them() {
        assert_eq!(names("debian:stable"), ["debian:stable", "registry.hub.docker.com/library/debian:stable"]);
        assert_eq!(names("local/app:1"), ["local/app:1", "registry.hub.docker.com/local/app:1"]);
        assert_eq!(names("https://quay.io/a/b:1"), ["quay.io/a/b:1"]);
        assert_eq!(names("quay.io/a/b:1"), ["quay.io/a/b:1"]);
        let digest = ManifestDigest::of(b"x");
        let wanted = Wanted::parse(&format!("quay.io/a:1@{digest}")).unwrap();
        assert_eq!((wanted.digest, wanted.names[0].as_str()), (Some(digest), "quay.io/a:1"));
        assert_eq!(names(&format!("quay.io/a@{digest}")), [format!("quay.io/a:{digest}")]);
        for bad in ["", "debian", "../x:1", ".flat/x:1", "a b:1", "https://podmanStore/x:1"] {
            assert!(Wanted::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_lead_to_the_repository_and_the_name() {
        let cvmfs = Path::new("/cvmfs");
        let found = |path: &str| published_path(Path::new(path), cvmfs);
        let (repository, wanted) = found("/cvmfs/a.b/quay.io/x/y:1").unwrap();
        assert_eq!((repository.as_str(), wanted.names[0].as_str(), wanted.place), ("a.b", "quay.io/x/y:1", None));
        let (_, wanted) = found("/cvmfs/a.b/.multiarch/arm64:v8/quay.io/x/y:1/").unwrap();
        assert_eq!(wanted.place.unwrap().as_str(), "arm64:v8");
        for other in ["/cvmfs/a.b", "/cvmfs", "/cvmfs/a.b/.layers/aa", "/tmp/x:1", "quay.io/x:1", "/cvmfs/a.b/x/../y:1"]
        {
            assert_eq!(found(other), None, "{other}");
        }
    }

    #[test]
    fn engines_get_the_names_they_know() {
        for (published, name) in [
            ("registry.hub.docker.com/library/debian:stable", "docker.io/library/debian:stable"),
            ("quay.io/a/b:1", "quay.io/a/b:1"),
            ("127.0.0.1:5000/a:1", "127.0.0.1:5000/a:1"),
            ("local/app:1", "localhost/local/app:1"),
        ] {
            assert_eq!(engine_name(&PublicName::parse(published).unwrap()), name);
        }
        let hex = "ab".repeat(32);
        let name = engine_name(&PublicName::parse(&format!("quay.io/a:sha256:{hex}")).unwrap());
        assert_eq!((name.as_str(), tag_of(&name)), (&*format!("quay.io/a:sha256-{hex}"), &*format!("sha256-{hex}")));
    }
}
