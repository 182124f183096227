//! Commands, and what their help says besides their arguments.

use clap::Subcommand;

use super::{
    Catalogs, Check, Convert, ConvertImage, Gc, Images, Ingest, Init, Inside, Lint, Pin, Prune, Record, Remove,
    Replicate, Rollback, Serve, Sign, Status, Tag, Undelete, Verify, Watch,
};

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
