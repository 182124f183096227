//! Mounts a repository with a reader that shares no line with ours: `second-reader URL MOUNTPOINT CACHE`, until unmounted.

use std::error::Error;

use other::fetcher::Fetcher;
use other::file_system::CernvmFileSystem;
use other::repository::Repository;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, mountpoint, cache] = &arguments[..] else {
        return Err("usage: second-reader URL MOUNTPOINT CACHE".into());
    };
    let repository = Repository::new(Fetcher::new(url, cache, true)?)?;
    Ok(CernvmFileSystem::new(repository)?.mount(mountpoint)?)
}
