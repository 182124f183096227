//! The least that any publisher must do with layer blobs: inflate, SHA-256, compress, SHA-1, write. No catalogs, no
//! index, no verification of what is written. `make bench` compares a conversion with this.
//!
//! `floor --threads N --out DIR BLOB…` prints plain bytes, wall and processor seconds as JSON.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use crossbeam_channel::{Receiver, bounded};
use cvmfs::hash::Algorithm;
use cvmfs::object::{Codec, Encoder};
use image::tar::{TarKind, TarReader};
use sha2::{Digest as _, Sha256};

/// Bytes in one piece at most: the longest chunk of a file.
const PIECE: usize = 16 << 20;

#[derive(Parser)]
struct Arguments {
    /// Threads that compress
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Directory for the objects
    #[arg(long)]
    out: PathBuf,
    /// Layer blobs, gzip
    blobs: Vec<PathBuf>,
}

struct Hashed<R>(R, Sha256, u64);

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.update(&buffer[..read]);
        self.2 += read as u64;
        Ok(read)
    }
}

fn compress(pieces: &Receiver<Vec<u8>>, out: &std::path::Path) {
    let mut encoder = Encoder::new(Algorithm::Sha1, Codec::default());
    for piece in pieces {
        let (hash, stored) = encoder.encode(&piece);
        std::fs::write(out.join(hash.to_string()), stored).expect("the output directory is writable");
    }
}

fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("own usage");
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn main() {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.out).expect("the output directory can be made");
    let start = Instant::now();
    let plain: u64 = std::thread::scope(|scope| {
        let (send, pieces) = bounded::<Vec<u8>>(4 * arguments.threads);
        for _ in 0..arguments.threads {
            let (pieces, out) = (pieces.clone(), &arguments.out);
            scope.spawn(move || compress(&pieces, out));
        }
        drop(pieces);
        // As many blobs at a time as a conversion reads.
        let readers: Vec<_> = (0..arguments.threads)
            .map(|n| {
                let (send, blobs) = (send.clone(), &arguments.blobs);
                let step = arguments.threads;
                scope.spawn(move || blobs.iter().skip(n).step_by(step).map(|b| read(b, &send)).sum::<u64>())
            })
            .collect();
        drop(send);
        readers.into_iter().map(|r| r.join().expect("blobs are readable")).sum()
    });
    let result = serde_json::json!({
        "plain_bytes": plain,
        "seconds": start.elapsed().as_secs_f64(),
        "cpu_seconds": cpu_seconds(),
    });
    println!("{result}");
}

fn read(blob: &std::path::Path, send: &crossbeam_channel::Sender<Vec<u8>>) -> u64 {
    let packed = Hashed(File::open(blob).expect("blobs are readable"), Sha256::new(), 0);
    let inflated = flate2::bufread::GzDecoder::new(BufReader::with_capacity(256 << 10, packed));
    let mut tar = TarReader::new(Hashed(inflated, Sha256::new(), 0));
    while let Some(entry) = tar.next_entry().expect("blobs are layers") {
        if !matches!(entry.kind, TarKind::Regular { .. }) {
            continue;
        }
        loop {
            let mut piece = Vec::new();
            tar.content().take(PIECE as u64).read_to_end(&mut piece).expect("blobs are layers");
            let len = piece.len();
            send.send(piece).expect("compressors listen");
            if len < PIECE {
                break;
            }
        }
    }
    tar.drain().expect("blobs are layers");
    tar.into_inner().2
}
