//! What the registry has, and what the wish list asks of it.

use std::collections::{BTreeMap, BTreeSet};

use image::digest::{ImageId, LayerDigest, ManifestDigest};

/// A machine that images are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    Amd64,
    Arm64,
    /// Wished for as v7, built as v6, which v7 runs.
    Arm,
}

impl Arch {
    pub const ALL: [Arch; 3] = [Arch::Amd64, Arch::Arm64, Arch::Arm];

    /// As wish lists name it.
    pub fn wished(self) -> &'static str {
        match self {
            Arch::Amd64 => "linux/amd64",
            Arch::Arm64 => "linux/arm64",
            Arch::Arm => "linux/arm/v7",
        }
    }

    /// As an index names it: architecture and variant.
    pub fn built(self) -> (&'static str, Option<&'static str>) {
        match self {
            Arch::Amd64 => ("amd64", None),
            Arch::Arm64 => ("arm64", Some("v8")),
            Arch::Arm => ("arm", Some("v6")),
        }
    }

    /// Its directory below `.multiarch`.
    pub fn directory(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64:v8",
            Arch::Arm => "arm:v7",
        }
    }

    /// What else the directory is called.
    pub fn aliases(self) -> &'static [&'static str] {
        match self {
            Arch::Amd64 => &["x86_64", "x86-64"],
            Arch::Arm64 => &["aarch64", "arm64"],
            Arch::Arm => &["arm", "armhf", "armv7", "armv7l"],
        }
    }
}

/// A layer or a flat, as a directory listing shows it.
pub type Part = String;

/// An image of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub arch: Arch,
    pub manifest: ManifestDigest,
    /// The index through which it was found.
    pub index: Option<ManifestDigest>,
    pub config: ImageId,
    pub layers: Vec<LayerDigest>,
}

impl Image {
    pub fn parts(&self) -> BTreeSet<Part> {
        let layers = self.layers.iter().map(|l| format!("layer/{}", l.hex()));
        layers.chain([format!("flat/{}", self.config.hex())]).collect()
    }
}

/// What a tag of the registry leads to: an image, or an index of several.
pub type Offer = BTreeMap<Arch, Image>;

/// What the list says of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// None: the publisher's own choice.
    pub platforms: Vec<Arch>,
    /// Whether the plain path leads each client to its own architecture.
    pub variant: bool,
}

impl Entry {
    pub fn random(random: &mut fastrand::Rng) -> Entry {
        let count = random.usize(0..=Arch::ALL.len());
        let mut platforms = random.choose_multiple(Arch::ALL, count);
        random.shuffle(&mut platforms);
        Entry { variant: !platforms.is_empty() && random.u8(..4) == 0, platforms }
    }

    /// As it stands in the list.
    pub fn text(&self, wish: &str) -> String {
        let platforms: Vec<&str> = self.platforms.iter().map(|arch| arch.wished()).collect();
        let platforms = match &platforms[..] {
            [] => String::new(),
            some => format!(", platforms: [{}]", some.join(", ")),
        };
        let variant = if self.variant { ", plain_path: variant" } else { "" };
        format!("  - {{image: '{wish}'{platforms}{variant}}}\n")
    }

    /// The platforms that are published, the default one first.
    pub fn wanted(&self) -> Vec<Arch> {
        if self.platforms.is_empty() { vec![Arch::Amd64] } else { self.platforms.clone() }
    }

    /// Whether each platform has a link below `.multiarch`.
    pub fn is_for_several(&self) -> bool {
        self.platforms.len() > 1 || self.variant
    }

    /// Whether it asks for a link below `.multiarch`; one that names no platform asks for all that are there.
    pub fn asks_for(&self, arch: Arch) -> bool {
        self.platforms.is_empty() || self.is_for_several() && self.platforms.contains(&arch)
    }
}
