//! The command line: every option, its help text and its default in one place.
//!
//! Scripts depend on it. The whole help text is kept in `tests/cli-reference.txt` and compared by a test, so neither an
//! option nor a default changes unseen. What the options mean for the work is decided elsewhere; here they only become
//! typed values. A command that does not work yet is not declared.

// The comments on commands and options are help texts for a terminal, not documentation in Markdown.
#![allow(rustdoc::bare_urls, rustdoc::broken_intra_doc_links)]

pub(crate) mod history;
mod limits;
mod lint;
mod notify;
mod paths;
mod record;
mod removal;
pub(crate) mod values;
mod verify;
mod watch;
mod weight;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use image::reference::{PublicName, Wish};

pub use self::history::{Gc, Rollback, Tag, TagAction, When, duration};
pub use self::limits::{ArchiveLimits, ImageLimits};
pub use self::lint::Lint;
pub use self::notify::Notifications;
pub use self::paths::{Environment, NoDefault, PathOptions, Paths, Unresolved};
pub use self::record::{Inside, Record};
pub use self::removal::{Pin, Prune, Remove, Undelete};
pub use self::values::fqrn;
pub use self::verify::Verify;
pub use self::watch::{Every, Status, Upkeep, Watch};
pub use self::weight::Catalogs;
use crate::error::CommandError;
use crate::progress::ProgressMode;

/// Publish container images into a CernVM-FS repository
///
/// Images named in a wish list become root file systems (.flat, for Apptainer and the like) and layers (.layers, for
/// containerd, Docker and Podman) in a signed repository that any CernVM-FS client can mount. Only what is missing is
/// fetched, and a pass with nothing new publishes nothing.
///
/// Results go to standard output, talk to standard error.
#[derive(Debug, Parser)]
#[command(
    name = "cvmfs-publisher",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_long_help = "\
Exit status:
    0  everything wished for is published; the repository is sound
    1  some wishes failed, or check found damage
    2  the command line is wrong
    3  the configuration or the wish list is wrong; nothing was done
    4  the repository can't be used: not found, not trusted, locked
  130  interrupted, after a clean abort
  143  terminated, after a clean abort

Examples:
  Create a repository, publish one image into it and serve it:
    cvmfs-publisher init images.example.org
    cvmfs-publisher convert-image debian:stable images.example.org
    cvmfs-publisher serve images.example.org --listen 0.0.0.0:8000"
)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Directories.
    #[command(flatten)]
    pub paths: PathOptions,

    /// What the operator says about registries: credentials, mirrors, CA files, request budgets
    ///
    /// TOML; doc/REGISTRIES.md has every key. Secrets are named in it, never written.
    ///
    /// [default: /etc/cvmfs-publisher/config.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,

    /// Print results as JSON
    ///
    /// One object on standard output; its fields are a contract, the text for people is not.
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,

    /// Show progress on standard error
    #[arg(long, global = true, value_enum, value_name = "FORM", default_value_t, help_heading = "Output")]
    pub progress: ProgressMode,

    /// Log events of this level and above on standard error
    #[arg(long, global = true, value_enum, value_name = "LEVEL", default_value_t, help_heading = "Output")]
    pub log_level: LogLevel,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogLevel {
    /// what went wrong
    Error,
    /// and what looks wrong
    #[default]
    Warn,
    /// and what was done
    Info,
    /// and each request
    Debug,
    /// and everything else
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Create a repository: storage, keys, whitelist, first revision
    ///
    /// Makes a signed, empty repository. Its master key, certificate and public key land in the key directory; clients
    /// need FQRN.pub. Objects can be collected as garbage, and the only named snapshots are the last two revisions.
    /// Nothing that exists is overwritten: if storage or keys are there already, nothing is done.
    #[command(after_long_help = "\
Examples:
  A repository of root, below /srv/cvmfs:
    cvmfs-publisher init images.example.org

  One in a directory of your own, with updates visible to clients after a minute:
    cvmfs-publisher --storage ./repo --keys ./keys --state ./state init images.example.org --ttl 60")]
    Init(Init),

    /// Publish the images of a wish list, once
    ///
    /// Resolves every wish to a digest, fetches the layers that are missing, and publishes all that is new. A bad entry
    /// of the list is a failed wish: it is reported with its line, and the others proceed. Stopped at any moment, the
    /// repository stays valid, and the next run goes on from what was stored.
    #[command(after_long_help = "\
Examples:
  One pass:
    cvmfs-publisher convert wishlist.yaml

  Show what a pass would do:
    cvmfs-publisher convert wishlist.yaml --dry-run

  Names of the wishes that failed:
    cvmfs-publisher --json convert wishlist.yaml | jq -r '.wishes[] | select(.outcome == \"failed\") | .wish'")]
    Convert(Convert),

    /// Keep a repository up with its wish list
    ///
    /// Does what convert does again and again: each image is looked at on an interval, and at once when its registry
    /// sends a webhook. An image that fails is tried again after 30 seconds, then after twice the time each, up to an
    /// hour; the others go on. The wish list is read again when it changes; one that can't be read leaves the last good
    /// one at work. The whitelist is renewed when fewer than ten days are left and the master key is at hand.
    ///
    /// With --listen it serves /metrics, /healthz, /status.json, and takes webhooks at /hooks/harbor,
    /// /hooks/distribution, /hooks/gitlab and /hooks/quay. SIGTERM and SIGINT end it with status 0, after what is ready
    /// is published. systemd is told when it is ready and that it is alive.
    #[command(
        visible_alias = "loop",
        after_long_help = "\
Examples:
  Every five minutes:
    cvmfs-publisher watch wishlist.yaml

  When registries tell, and once an hour:
    openssl rand -hex 32 > /etc/cvmfs/hook-token
    cvmfs-publisher watch wishlist.yaml --interval 1h --listen 0.0.0.0:8600 --hook-token /etc/cvmfs/hook-token"
    )]
    Watch(Watch),

    /// Show what became of each image, and when it is tried again
    ///
    /// Reads what watch keeps on this machine, and the end of the whitelist.
    #[command(after_long_help = "\
Examples:
  For people:
    cvmfs-publisher status images.example.org

  Images that fail, and why:
    cvmfs-publisher --json status images.example.org | jq '.images | map_values(select(.error)) | map_values(.error)'")]
    Status(Status),

    /// Publish one image
    ///
    /// The image may be in a registry (https://quay.io/tools/app:1, http://127.0.0.1:5000/app:1, debian:stable), in an
    /// OCI layout (oci:DIR[:TAG]) or in a file written by docker save (docker-archive:FILE). A wildcard in the tag takes
    /// every tag that matches.
    #[command(
        visible_alias = "convert-single-image",
        after_long_help = "\
Examples:
  An image of Docker Hub:
    cvmfs-publisher convert-image debian:stable images.example.org

  An image from a local registry, under another name:
    cvmfs-publisher convert-image http://127.0.0.1:5000/app:1 images.example.org --as tools/app:1

  An image that was built here and never pushed:
    docker save app:1 -o app.tar
    cvmfs-publisher convert-image docker-archive:app.tar images.example.org --as tools/app:1"
    )]
    ConvertImage(ConvertImage),

    /// Publish the content of a tar file
    ///
    /// Unpacks a tar file, compressed or not, below a directory of the repository, and publishes once. Members replace
    /// what has their name; everything else stays. Paths to delete go first.
    #[command(after_long_help = "\
Examples:
  Publish a tar file:
    cvmfs-publisher ingest images.example.org --tar tools.tar.gz --base software/tools

  Replace a directory by what a command writes:
    make-tree | cvmfs-publisher ingest images.example.org --tar - --base data/current --delete data/current")]
    Ingest(Ingest),

    /// List the published images
    ///
    /// Prints each image with its digest and when it was published. With --earlier it lists what can be put back instead:
    /// images that were removed, and those that tags led to before.
    #[command(after_long_help = "\
Examples:
  What is there:
    cvmfs-publisher images images.example.org

  What can be undeleted:
    cvmfs-publisher images images.example.org --earlier

  Digests only:
    cvmfs-publisher --json images images.example.org | jq -r '.[].digest'")]
    Images(Images),

    /// Publish what a start of an image touches, so that clients fetch it ahead
    ///
    /// Runs a command from the published image and keeps the list of the files that it reads, in their order: the start-up
    /// list of the image. The image is mounted by cvmfs-client with an empty cache and started in namespaces of its own,
    /// with few capabilities and nothing of this machine but its network. Without a command it is the image's own. Needs
    /// root. A list that was made elsewhere is taken with --list.
    ///
    /// The list is published at once. It stays with the name of the image: when its tag moves, what is still there is
    /// kept, with new sizes. Clients fetch it when something starts in the flat image, and the snapshotter announces it.
    #[command(after_long_help = "\
Examples:
  Until the command ends:
    cvmfs-publisher record quay.io/tools/app:1 images.example.org -- app --version

  A server, for half a minute:
    cvmfs-publisher record quay.io/tools/server:2 images.example.org --for 30s

  A list that was made elsewhere, for stock clients as well; and none any more:
    cvmfs-publisher record quay.io/tools/app:1 images.example.org --list startup.json --bundles
    cvmfs-publisher record quay.io/tools/app:1 images.example.org --remove")]
    Record(Record),

    /// Starts what record records; not for people
    #[command(hide = true)]
    RecordInside(Inside),

    /// Check that a repository is sound
    ///
    /// Follows the chain of trust, then every catalog of the current revision: rows, counters, nested catalogs, and the
    /// presence of every object. Prints what is wrong. The exit status is 0 for a sound repository, 1 for an unsound
    /// one and 4 for one that can't be read.
    ///
    /// With --fix, what can be repaired without the registry is repaired: wrong counters and link counts, rows that
    /// nobody sees, tags and reflog, and what other publishers of images leave behind. The plan is printed, then applied
    /// in one publish, then the repository is checked again. The exit status is 1 if something remains; the reason is
    /// printed. Layers and flats whose content is gone are fetched by the next convert.
    #[command(after_long_help = "\
Examples:
  Structure, and presence of all objects:
    cvmfs-publisher check images.example.org

  Read every byte as well:
    cvmfs-publisher check images.example.org --data

  What would be repaired, and the repair:
    cvmfs-publisher check images.example.org --fix --dry-run
    cvmfs-publisher check images.example.org --fix")]
    Check(Check),

    /// Compare a published image with the image in its registry
    ///
    /// Reads the layers of the image again, as a conversion does, and compares every row of its layers and of its flat
    /// with what is published: type, permissions, owner, size, time, attributes, link target, device, hard links,
    /// content. So it does with the public link, the records, the index and the store for Podman. Nothing is changed.
    /// The exit status is 0 if all is as the image says, and 1 if something differs.
    ///
    /// The image that is compared is the one that the repository's record names by digest, even if the tag has moved.
    #[command(after_long_help = "\
Examples:
  Every row, and content by its hashes:
    cvmfs-publisher verify debian:stable images.example.org

  Read all published bytes as well:
    cvmfs-publisher verify debian:stable images.example.org --data

  Convert again what differs:
    cvmfs-publisher verify debian:stable images.example.org --fix

  Kinds of differences, counted:
    cvmfs-publisher --json verify debian:stable images.example.org | jq '.images[].counts'")]
    Verify(Verify),

    /// Show what the catalogs of images weigh
    ///
    /// Clients fetch catalogs as a whole: those on the way to an image, and those of the parts that are touched. For
    /// one image, every catalog on the way to its link, records and flat is shown, and the number, rows, bytes and
    /// largest catalog of its flat and of each layer. Without an image, all are listed, those with the most entries
    /// first.
    #[command(after_long_help = "\
Examples:
  The heaviest images:
    cvmfs-publisher catalogs images.example.org | head

  What a client fetches for one of them:
    cvmfs-publisher catalogs images.example.org debian:stable")]
    Catalogs(Catalogs),

    /// Serve a repository over HTTP
    ///
    /// A small server for the files that clients and replicas read, and for nothing else. Any other web server does as
    /// well: files named .cvmfs* may be cached for a minute, everything below data/ for ever. The first line on
    /// standard output is the address, as soon as connections are accepted. SIGTERM and SIGINT end it with status 0,
    /// after transfers under way have had ten seconds to finish.
    #[command(after_long_help = "\
Examples:
  For this machine:
    cvmfs-publisher serve images.example.org
    cvmfs-client mount images.example.org /cvmfs/images.example.org \\
        --server-url http://127.0.0.1:8000/cvmfs/images.example.org --public-key images.example.org.pub

  For everybody:
    cvmfs-publisher serve images.example.org --listen 0.0.0.0:8000

  On a free port, for scripts:
    cvmfs-publisher --json serve images.example.org --listen 127.0.0.1:0")]
    Serve(Serve),

    /// Check a wish list without publishing
    ///
    /// Reports every mistake with file, line and field: entries that name no image, duplicates and contradictions, also
    /// across included files, unknown keys, names that can't be published. Talks to no registry unless told to. The exit
    /// status is 0 if all wishes are valid (warnings may remain), 3 if the list is wrong, and 1 if with --online a
    /// registry lacks what a sound list asks for.
    #[command(after_long_help = "\
Examples:
  In a check of merge requests:
    cvmfs-publisher lint wishlist.yaml

  With a look at the registries:
    cvmfs-publisher lint wishlist.yaml --online

  All mistakes as JSON:
    cvmfs-publisher --json lint wishlist.yaml")]
    Lint(Lint),

    /// Print the JSON Schema of wish lists
    ///
    /// For editors and checks. It accepts and refuses what the program does, but for what a schema can't say:
    /// duplicates, contradictions, names that can't be published.
    #[command(after_long_help = "\
Examples:
  For an editor that knows JSON Schema:
    cvmfs-publisher schema > wishlist.schema.json")]
    Schema,

    /// List, add or remove named snapshots of a repository
    ///
    /// A name keeps the revision that it names: clients can mount it (CVMFS_REPOSITORY_TAG), and no collection takes its
    /// objects. The list shows name, revision, time and root hash, the newest first. The names trunk and trunk-previous
    /// are kept by every publish. Adding and removing names publishes no new revision.
    #[command(after_long_help = "\
Examples:
  Which snapshots are there:
    cvmfs-publisher tag images.example.org

  Name the present revision, and an earlier one:
    cvmfs-publisher tag images.example.org add before-upgrade --message works
    cvmfs-publisher tag images.example.org add v41 --revision 41

  Give names up:
    cvmfs-publisher tag images.example.org remove before-upgrade v41")]
    Tag(Tag),

    /// Go back to an earlier revision of a repository
    ///
    /// Publishes the content of a tag again, as a new revision: running clients move to it like to any other. Later tags
    /// are removed, and the tag moves to the new revision. Without a tag it goes back to the revision before the present
    /// one, which works once in a row. Content is only lost by a later collection.
    #[command(after_long_help = "\
Examples:
  Undo the last publish:
    cvmfs-publisher rollback images.example.org

  Back to a named revision:
    cvmfs-publisher rollback images.example.org before-upgrade")]
    Rollback(Rollback),

    /// Remove an image
    ///
    /// Takes the image's name away, on all platforms. Its records are kept as those of an earlier image, and its flat and
    /// layers stay where they are until gc has found them unused and their grace is over; so containers that run go on,
    /// and undelete puts the image back. Layers that other images have are not concerned at all.
    ///
    /// An image that a wish list still asks for comes back with the next convert.
    #[command(after_long_help = "\
Examples:
  As it stands in a wish list, or as the command images prints it:
    cvmfs-publisher remove https://quay.io/tools/app:1 images.example.org
    cvmfs-publisher remove quay.io/tools/app:1 images.example.org

  What would go:
    cvmfs-publisher remove debian:stable images.example.org --dry-run")]
    Remove(Remove),

    /// Put an image back that was removed, or an earlier one of a tag that moved
    ///
    /// Works as long as gc has not swept what the image is made of: at least for the grace. Nothing is fetched. Without
    /// --version it is the image that the name led to last, and the name must lead to none now. With it the name may be
    /// published: it leads to the earlier image from then on, until a convert finds that the registry says otherwise.
    #[command(after_long_help = "\
Examples:
  Undo a removal:
    cvmfs-publisher undelete https://quay.io/tools/app:1 images.example.org

  Back to what a tag meant before:
    cvmfs-publisher images images.example.org --earlier
    cvmfs-publisher undelete debian:stable images.example.org --version sha256:3f1c")]
    Undelete(Undelete),

    /// Keep an image whatever happens to its name
    ///
    /// What the name leads to now stays: prune passes it over, remove refuses, and when the tag moves, the flat and the
    /// layers of the pinned image are never condemned, and it can be undeleted for ever.
    #[command(after_long_help = "\
Examples:
  Keep what was used for a publication:
    cvmfs-publisher pin https://quay.io/tools/app:1 images.example.org

  Give it up:
    cvmfs-publisher pin https://quay.io/tools/app:1 images.example.org --remove")]
    Pin(Pin),

    /// Remove the images that no wish list asks for
    ///
    /// Compares what is published with the lists and removes the rest, in one publish, as remove does. No registry is
    /// asked: a wildcard asks for every published tag that it takes, whether or not the registry still has it. Pinned
    /// images stay. Images that were published one by one (convert-image) are removed unless a list names them or they
    /// are pinned.
    ///
    /// A list with a bad entry is refused, as nobody knows what the entry asks for; so is one that asks for nothing.
    #[command(after_long_help = "\
Examples:
  What would go, then do it:
    cvmfs-publisher prune wishlist.yaml --dry-run
    cvmfs-publisher prune wishlist.yaml

  A repository that is fed from several lists:
    cvmfs-publisher prune physics.yaml biology.yaml")]
    Prune(Prune),

    /// Remove layers and flats that no image needs; with --objects what no kept revision refers to
    ///
    /// Layers and flats that no published image, no pinned one, no link and no node needs are condemned: the time is
    /// recorded. They are removed by the first run after their grace, unless something needs them again. Everything that
    /// is needed is found first; if one record cannot be read, nothing is condemned or removed. There is one publish, and
    /// none if there is nothing to do.
    ///
    /// With --objects it then removes objects from the storage: those of revisions that are neither tagged nor within the
    /// threshold, and those that runs stored and never published. Everything that kept revisions refer to is found
    /// first; if one catalog of theirs cannot be read, nothing is removed. Readers are not disturbed. Others who publish
    /// or convert are waited for up to ten minutes. Killed at any moment, the next collection completes it. The
    /// repository has to be made collectable (init without --no-gc).
    #[command(after_long_help = "\
Examples:
  What would go:
    cvmfs-publisher gc images.example.org --objects --dry-run

  Every night, with the last two images of each tag kept, and all that nodes say they use:
    cvmfs-publisher gc images.example.org --keep-versions 2 --in-use /var/lib/usage-reports

  Once a week, with all revisions of the last month kept:
    cvmfs-publisher gc images.example.org --objects --keep-since 30d

  Only the present revision, the ten before it, and tags:
    cvmfs-publisher gc images.example.org --objects --keep-revisions 10")]
    Gc(Gc),

    /// Copy a repository from a server, or bring a copy up to date
    ///
    /// Makes a stratum 1: a directory that any web server can export, with everything that clients and further copies
    /// read. Each object is verified before it has a name, and the manifest is replaced last; so the copy always shows
    /// a complete revision. The next run fetches what is new. Stopped at any moment, it goes on where it was.
    ///
    /// The server has to allow it (.cvmfs_master_replica), and the public master key of the repository is needed.
    #[command(after_long_help = "\
Examples:
  A copy below the root of a web server; again from cron, every few minutes:
    cvmfs-publisher replicate http://s0.example.org/cvmfs/images.example.org \\
        /srv/cvmfs/images.example.org --public-key images.example.org.pub

  What a run moved:
    cvmfs-publisher --json replicate http://s0.example.org/cvmfs/images.example.org ./copy | jq .received")]
    Replicate(Replicate),

    /// Renew the whitelist of a repository
    ///
    /// Signs the whitelist again with the master key. Clients refuse a repository whose whitelist has expired. The
    /// content and its revision don't change.
    #[command(after_long_help = "\
Examples:
  Once a week:
    cvmfs-publisher sign images.example.org")]
    Sign(Sign),
}

/// Arguments of `init`.
#[derive(Debug, Clone, Args)]
pub struct Init {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Seconds after which clients look for a new revision
    #[arg(long, value_name = "SECONDS", default_value_t = 240)]
    pub ttl: u64,

    /// Hash algorithm that names the objects
    #[arg(long, value_enum, value_name = "NAME", default_value_t)]
    pub hash: HashName,

    /// Keep every object for ever
    ///
    /// The repository is then marked as one that garbage collection must not touch.
    #[arg(long)]
    pub no_gc: bool,
}

/// Hash algorithms that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum HashName {
    /// SHA-1, the one that every client reads
    #[default]
    Sha1,
    /// RIPEMD-160
    Rmd160,
    /// SHAKE-128, of which 160 bits are taken
    Shake128,
}

/// Arguments of `convert`.
#[derive(Debug, Clone, Args)]
pub struct Convert {
    /// The wish list, a YAML file
    #[arg(value_name = "WISHLIST")]
    pub wishlist: PathBuf,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Refuse the whole list if one entry is bad
    #[arg(long)]
    pub strict: bool,

    /// Push no thin images, whatever output_format says
    ///
    /// Without it, the thin image of every published image is pushed to the name that output_format gives, if it
    /// changed. The password of the list's user is in CVMFS_PUBLISHER_OUTPUT_PASSWORD, in the file that
    /// CVMFS_PUBLISHER_OUTPUT_PASSWORD_FILE names, or in DUCC_OUTPUT_REGISTRY_PASS; a list without a user takes the
    /// Docker configuration's.
    #[arg(long, alias = "skip-thin-image")]
    pub no_thin_images: bool,

    /// Put all images of the list into the store for Podman, whatever the list says
    #[arg(long, conflicts_with = "no_podman_store")]
    pub podman_store: bool,

    /// Put none into the store for Podman that is not there
    ///
    /// Without it, the key podman of the list says which images go into the additional image store of the repository,
    /// podmanStore: true, false, or patterns as in ignoreErrors. Images that are in it follow their names in any case.
    #[arg(long, alias = "skip-podman")]
    pub no_podman_store: bool,

    /// How images are converted.
    #[command(flatten)]
    pub conversion: Conversion,

    /// Who is told.
    #[command(flatten)]
    pub notifications: Notifications,
}

/// Arguments of `convert-image`.
#[derive(Debug, Clone, Args)]
pub struct ConvertImage {
    /// The image, in the syntax of wish lists
    #[arg(value_name = "IMAGE", value_parser = Wish::parse)]
    pub image: Wish,

    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Publish under this name
    ///
    /// Without it, the name is that of the image: REGISTRY/REPOSITORY:TAG; an image on disk is local/NAME:TAG.
    #[arg(long = "as", value_name = "NAME:TAG", value_parser = PublicName::parse)]
    pub name: Option<PublicName>,

    /// Publish this start-up list beside the image
    ///
    /// What a start touches, for clients that fetch it ahead. Without it, an image keeps the list that its name has.
    #[arg(long, value_name = "FILE")]
    pub startup: Option<PathBuf>,

    /// Publish the start-up list as a file bundle, too
    ///
    /// For stock clients from 2.14 on that are mounted with CVMFS_PREFETCH_FILEBUNDLES=yes: a hidden file in the flat,
    /// beside the first file of the list. Without it, an image keeps what its name has.
    #[arg(long, conflicts_with = "no_bundles")]
    pub bundles: bool,

    /// Publish no file bundle, and take away the one that is there
    #[arg(long)]
    pub no_bundles: bool,

    /// Put the image into the store for Podman, too: podmanStore in the repository
    #[arg(long)]
    pub podman_store: bool,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// How images are converted.
    #[command(flatten)]
    pub conversion: Conversion,

    /// Who is told.
    #[command(flatten)]
    pub notifications: Notifications,
}

/// How images are converted.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Conversion")]
pub struct Conversion {
    /// Platform to choose where an image has several; may be repeated
    ///
    /// The first one is the default platform, whose image is at the plain path. With more than one, every image is
    /// published below .multiarch/ARCH[:VARIANT] for each of them. What a wish list says of platforms wins.
    ///
    /// [default: linux and the architecture of this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Vec<String>,

    /// Layers to work on at the same time
    ///
    /// [default: number of processors]
    #[arg(long, value_name = "N")]
    pub jobs: Option<NonZeroUsize>,

    /// Packed bytes of layers that are fetched and not stored yet, at most; a larger layer goes alone
    ///
    /// Sizes take the units k, M, G, T (powers of 1000) and Ki, Mi, Gi, Ti (powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = values::size, default_value = "64G")]
    pub max_preparing: u64,

    /// Room that is left free on the disks of the storage and of the state
    ///
    /// An image whose layers would take it fails; those that fit go on.
    #[arg(long, value_name = "SIZE", value_parser = values::size, default_value = "512Mi")]
    pub keep_free: u64,

    /// Permissions of files in flat images
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    pub flat_permissions: FlatPermissions,

    /// Images in the store for Podman, at most: every program that has it open reads the list of all
    #[arg(long, value_name = "N", default_value_t = crate::podman::LIMIT)]
    pub podman_limit: usize,

    /// Limits.
    #[command(flatten)]
    pub limits: ImageLimits,
}

/// Permissions of files in flat images. Files that not everybody may read are reported either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum FlatPermissions {
    /// as in the image
    #[default]
    Keep,
    /// everything becomes readable for everybody
    Readable,
}

/// Arguments of `ingest`.
#[derive(Debug, Clone, Args)]
pub struct Ingest {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// The tar file, or - for standard input
    ///
    /// Compression (gzip, zstd) is recognised by content.
    #[arg(long, value_name = "FILE", requires = "base", required_unless_present = "delete")]
    pub tar: Option<PathBuf>,

    /// Directory of the repository that receives the content; created if missing
    #[arg(long, value_name = "DIR", requires = "tar")]
    pub base: Option<String>,

    /// Give the directory a catalog of its own
    ///
    /// Clients load catalogs as a whole when they enter the directory: a tree of many files deserves one.
    #[arg(long, requires = "base")]
    pub catalog: bool,

    /// Delete this path of the repository first, with everything below; may be repeated
    #[arg(long, value_name = "PATH")]
    pub delete: Vec<String>,

    /// Limits.
    #[command(flatten)]
    pub limits: ArchiveLimits,
}

/// Arguments of `images`.
#[derive(Debug, Clone, Args)]
pub struct Images {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// List the images that can be undeleted instead, with the time until which their names led to them
    #[arg(long)]
    pub earlier: bool,
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct Check {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Read every object and compare it with its hash
    #[arg(long)]
    pub data: bool,

    /// Repair what can be repaired, in one publish
    #[arg(long)]
    pub fix: bool,

    /// Print the plan of the repair and change nothing
    #[arg(long, requires = "fix")]
    pub dry_run: bool,

    /// Repair layers in place that running containers may hold open
    ///
    /// Layers whose deletions are files named .wh.* stay as they are, and a copy with whiteouts is written beside.
    /// With this option they are changed where they are: containers that run on them see deleted files vanish.
    #[arg(long, requires = "fix")]
    pub yes_change_live_layers: bool,
}

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
}

/// Arguments of `replicate`.
#[derive(Debug, Clone, Args)]
pub struct Replicate {
    /// URL of the repository on the server: what stands before /.cvmfspublished
    #[arg(value_name = "URL", value_parser = values::repository_url)]
    pub url: reqwest::Url,

    /// Directory of the copy
    #[arg(value_name = "DIR", value_parser = values::directory)]
    pub directory: PathBuf,

    /// Name of the repository, fully qualified
    ///
    /// [default: the last component of the URL]
    #[arg(long, value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: Option<String>,

    /// Public master key of the repository; may be repeated, one that matches suffices
    ///
    /// [default: FQRN.pub in the key directory]
    #[arg(long, value_name = "FILE")]
    pub public_key: Vec<PathBuf>,

    /// Certificates and revisions that are refused, in the format of /etc/cvmfs/blacklist
    #[arg(long, value_name = "FILE", default_value = "/etc/cvmfs/blacklist")]
    pub blacklist: PathBuf,

    /// Requests in flight
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub connections: u16,

    /// HTTP or SOCKS proxy
    ///
    /// [default: what the variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY say]
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
}

/// Arguments of `sign`.
#[derive(Debug, Clone, Args)]
pub struct Sign {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Days until the whitelist expires
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

/// What a pair of options says, of which one contradicts the other.
pub fn said(yes: bool, no: bool) -> Option<bool> {
    (yes || no).then_some(yes)
}

/// Writes a result to standard output. A reader that went away ends the program without complaint.
pub fn print_result(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CommandError::output)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("cvmfs-publisher").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_and_behind_the_command() {
        for line in ["--json --storage /s lint w.yaml", "lint w.yaml --json --storage /s"] {
            let cli = parse(line).unwrap();
            assert!(cli.global.json);
            assert_eq!(cli.global.paths.storage, Some(PathBuf::from("/s").into()));
            assert_eq!(cli.global.progress, ProgressMode::Auto);
        }
    }

    #[test]
    fn limits_have_the_designed_defaults() {
        let Command::Convert(convert) = parse("convert w.yaml").unwrap().command else { panic!("not convert") };
        assert_eq!(
            convert.conversion.limits,
            ImageLimits {
                max_layers: 500,
                max_manifest_size: 4 << 20,
                layer: ArchiveLimits {
                    max_layer_size: 500_000_000_000,
                    max_entries: 5_000_000,
                    max_expansion: 1000,
                    max_zstd_window: 64 << 20,
                    max_pax_header: 1 << 20,
                },
            }
        );
    }

    #[test]
    fn each_limit_has_its_option() {
        let line = "convert-image debian:12 a.b --max-layer-size 1 --max-entries 2 --max-expansion 3 \
                    --max-zstd-window 4k --max-pax-header 5Ki --max-layers 6 --max-manifest-size 7";
        let Command::ConvertImage(convert) = parse(line).unwrap().command else { panic!("not convert-image") };
        let limits = convert.conversion.limits;
        assert_eq!((limits.layer.max_layer_size, limits.layer.max_entries, limits.layer.max_expansion), (1, 2, 3));
        assert_eq!((limits.layer.max_zstd_window, limits.layer.max_pax_header), (4000, 5 << 10));
        assert_eq!((limits.max_layers, limits.max_manifest_size), (6, 7));
    }

    #[test]
    fn the_old_name_of_convert_image_works() {
        let Command::ConvertImage(convert) =
            parse("convert-single-image debian:12 images.example.org --as tools/debian:12").unwrap().command
        else {
            panic!("not convert-image")
        };
        assert_eq!(convert.image.to_string(), "https://registry.hub.docker.com/library/debian:12");
        assert_eq!(convert.name.unwrap().as_str(), "tools/debian:12");
    }

    #[test]
    fn ingest_wants_something_to_do() {
        let cases = [
            ("ingest a.b --tar - --base x", true),
            ("ingest a.b --tar - --base x --catalog --delete y --delete z", true),
            ("ingest a.b --delete y", true),
            ("ingest a.b", false),
            ("ingest a.b --tar -", false),
            ("ingest a.b --base x", false),
            ("ingest a.b --delete y --catalog", false),
        ];
        for (line, accepted) in cases {
            assert_eq!(parse(line).is_ok(), accepted, "{line}");
        }
    }

    #[test]
    fn wrong_arguments_are_refused_with_status_2() {
        let cases = [
            ("", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("frobnicate w.yaml", ErrorKind::InvalidSubcommand),
            ("init images", ErrorKind::ValueValidation),
            ("init images.example.org --hash sha256", ErrorKind::InvalidValue),
            ("convert-image not/a:good:name images.example.org", ErrorKind::ValueValidation),
            ("convert-image debian:12 images.example.org --as .flat/x:1", ErrorKind::ValueValidation),
            ("convert w.yaml --jobs 0", ErrorKind::ValueValidation),
            ("convert w.yaml --max-layer-size many", ErrorKind::ValueValidation),
            ("serve images.example.org --listen 8000", ErrorKind::ValueValidation),
            ("--storage ftp://host/x check a.b", ErrorKind::ValueValidation),
            ("--storage s3:///x check a.b", ErrorKind::ValueValidation),
            ("sign a.b --days 0", ErrorKind::ValueValidation),
        ];
        for (line, kind) in cases {
            let error = parse(line).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}");
        }
    }
}
