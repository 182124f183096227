//! Files that the kernel reads from the cache itself.
//!
//! Facts: all who have an inode open at a time must read it the same way, from the same backing file; a backing file stays
//! open until the last of them is done, whatever happens to its name in the cache. What is cut into
//! chunks has to be put together for this (`fs/joined.rs`).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// How each open inode is read.
#[derive(Debug)]
pub struct Backings<B> {
    open: Mutex<HashMap<u32, Opened<B>>>,
}

#[derive(Debug)]
struct Opened<B> {
    count: usize,
    /// None when the client reads it.
    backing: Option<Arc<B>>,
}

impl<B> Default for Backings<B> {
    fn default() -> Backings<B> {
        Backings { open: Mutex::default() }
    }
}

impl<B> Backings<B> {
    /// An inode is opened; gives what it is read from. Only the first of several has `register` called, which may refuse.
    pub fn open(&self, inode: u32, register: impl FnOnce() -> Option<B>) -> Option<Arc<B>> {
        let mut open = self.open.lock();
        let opened = open.entry(inode).or_insert_with(|| Opened { count: 0, backing: register().map(Arc::new) });
        opened.count += 1;
        opened.backing.clone()
    }

    /// One of those who have it open is done.
    pub fn close(&self, inode: u32) {
        let mut open = self.open.lock();
        if let Some(opened) = open.get_mut(&inode) {
            opened.count -= 1;
            if opened.count == 0 {
                open.remove(&inode);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_read_in_one_way_while_it_is_open() {
        let backings = Backings::default();
        assert_eq!(backings.open(1, || Some("first")).as_deref(), Some(&"first"));
        assert_eq!(backings.open(1, || panic!("it has one")).as_deref(), Some(&"first"));
        assert_eq!(backings.open(2, || None), None);
        assert_eq!(backings.open(2, || Some("too late")), None, "others read it through the client");
        [1, 2, 1, 2, 3].into_iter().for_each(|inode| backings.close(inode));
        assert_eq!(backings.open(1, || Some("second")).as_deref(), Some(&"second"));
        assert_eq!(backings.open(2, || Some("in time")).as_deref(), Some(&"in time"));
    }
}
