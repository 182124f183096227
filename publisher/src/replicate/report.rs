//! What a run did, for people and for programs.

use cvmfs::reflog::Ref;
use indicatif::DecimalBytes;
use serde::Serialize;

/// Objects and their stored bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Number.
    pub objects: u64,
    /// Stored bytes.
    pub bytes: u64,
}

/// The report of a run that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replicated {
    /// Name of the repository.
    pub repository: String,
    /// Where it was copied from.
    pub url: String,
    /// Revision of the copy before; none for the first one.
    pub revision_before: Option<u64>,
    /// Revision of the copy now.
    pub revision: u64,
    /// What was stored, catalogs included.
    pub stored: Amount,
    /// Catalogs among it.
    pub catalogs: u64,
    /// References, in catalogs that were read, to objects that were there already.
    pub present: u64,
    /// Earlier revisions that the server has collected, so that they could not be copied.
    pub collected: u64,
    /// Requests made.
    pub requests: u64,
    /// Bytes received, in bodies of answers.
    pub received: u64,
    /// How long it took.
    pub seconds: f64,
    /// Roots that the copy has, for its reflog.
    #[serde(skip)]
    pub(super) refs: Vec<Ref>,
}

impl Replicated {
    /// For people.
    pub fn to_text(&self) -> String {
        let Replicated { repository, revision, stored, catalogs, requests, received, seconds, .. } = self;
        let before = match self.revision_before {
            Some(before) if before == *revision => format!("still at revision {revision}"),
            Some(before) => format!("revision {before} → {revision}"),
            None => format!("copied at revision {revision}"),
        };
        let mut text = format!(
            "{repository}: {before}; {} objects stored, {} ({catalogs} catalogs); {requests} requests, {} received, {seconds:.1} s\n",
            stored.objects,
            DecimalBytes(stored.bytes),
            DecimalBytes(*received),
        );
        if self.collected > 0 {
            text.push_str(&format!("{} earlier revisions are no longer on the server\n", self.collected));
        }
        text
    }

    /// For programs.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Document<'a> {
            schema: u32,
            #[serde(flatten)]
            report: &'a Replicated,
        }
        let document = Document { schema: 1, report: self };
        let text = serde_json::to_string_pretty(&document).expect("a report holds only strings and numbers");
        format!("{text}\n")
    }
}
