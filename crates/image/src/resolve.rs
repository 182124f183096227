//! Symbolic links inside a tree: followed without ever leaving its root, and without a file system.
//!
//! An absolute target begins at the root of the tree, `..` at the root stays there, at most [`MAX_LINKS`] links are
//! followed: what a process sees that has changed its root to the tree.

use crate::tree::{PathError, TreePath};

/// As many links as Linux follows.
pub const MAX_LINKS: usize = 40;

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// Links in a circle, or too many of them.
    #[error("\"{0}\" leads through more than {MAX_LINKS} symbolic links; probably a loop")]
    Loop(TreePath),
    /// A link leads to a path that can't exist.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Where a path leads. `target_of` says what a symbolic link points to, nothing for anything else, also for what
/// doesn't exist: beyond that point names are taken as they are. The last component is followed on request.
pub fn resolve<E: From<ResolveError>>(
    path: &TreePath,
    follow_last: bool,
    mut target_of: impl FnMut(&TreePath) -> Result<Option<Vec<u8>>, E>,
) -> Result<TreePath, E> {
    let mut done = TreePath::root();
    let mut links = 0;
    // components still to go, the next one last
    let mut todo: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
    while let Some(component) = todo.pop() {
        match &component[..] {
            b"" | b"." => {}
            b".." => done = done.parent().unwrap_or_default(),
            name => {
                let next = done.join(name).map_err(ResolveError::Path)?;
                let is_last = todo.is_empty() && !follow_last;
                match if is_last { None } else { target_of(&next)? } {
                    None => done = next,
                    Some(target) => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(ResolveError::Loop(path.clone()).into());
                        }
                        if target.starts_with(b"/") {
                            done = TreePath::root();
                        }
                        todo.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                    }
                }
            }
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_inside_the_root() {
        let links = [
            ("abs", "/etc/x"),
            ("up", "../../../../etc"),
            ("a/rel", "../b"),
            ("b", "c"),
            ("loop1", "loop2"),
            ("loop2", "loop1"),
            ("self", "self/x"),
            ("dot", "./."),
            ("slash", "b/"),
            ("empty", ""),
        ];
        let run = |path: &str, follow| {
            resolve::<ResolveError>(&TreePath::new(path).unwrap(), follow, |path| {
                let found = links.iter().find(|(link, _)| link.as_bytes() == path.as_bytes());
                Ok(found.map(|(_, target)| target.as_bytes().to_vec()))
            })
            .map(|path| path.to_string())
        };
        for (path, last, through) in [
            ("abs", "abs", "etc/x"),
            ("up/y", "etc/y", "etc/y"),
            ("a/rel/z", "c/z", "c/z"),
            ("a/rel", "a/rel", "c"),
            ("dot/b", "b", "c"),
            ("slash/q", "c/q", "c/q"),
            ("empty/q", "q", "q"),
            ("none/x", "none/x", "none/x"),
            ("", "/", "/"),
        ] {
            assert_eq!(run(path, false).unwrap(), last, "{path}");
            assert_eq!(run(path, true).unwrap(), through, "{path}");
        }
        for path in ["loop1/x", "self/x"] {
            assert!(matches!(run(path, false), Err(ResolveError::Loop(_))), "{path}");
        }
    }
}
