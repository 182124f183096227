//! The scripts in `.singularity.d` that are the same for every image.
//!
//! Written for any POSIX shell. Engines call `actions/*` (current ones have their own and call only `runscript`), which
//! read `env/*.sh` in the order of their names. SCIF applications live below `/scif/apps`.

/// Path and text; all executable.
pub(super) const ALL: [(&str, &str); 11] = [
    (".singularity.d/actions/exec", EXEC),
    (".singularity.d/actions/run", RUN),
    (".singularity.d/actions/shell", SHELL),
    (".singularity.d/actions/start", START),
    (".singularity.d/actions/test", TEST),
    (".singularity.d/env/01-base.sh", BASE),
    (".singularity.d/env/90-environment.sh", ENVIRONMENT),
    (".singularity.d/env/95-apps.sh", APPS),
    (".singularity.d/env/99-base.sh", LIBRARIES),
    (".singularity.d/env/99-runtimevars.sh", RUNTIME),
    (".singularity.d/startscript", STARTSCRIPT),
];

/// The first lines of every action: the environment.
macro_rules! action {
    ($what:literal, $rest:literal) => {
        concat!(
            "#!/bin/sh\n# ",
            $what,
            r#"
for env_file in /.singularity.d/env/*.sh; do
    if [ -f "$env_file" ]; then
        . "$env_file"
    fi
done
unset env_file
"#,
            $rest
        )
    };
}

const EXEC: &str = action!(
    "Runs a command in the environment of the image.",
    r#"exec "$@"
"#
);

const RUN: &str = action!(
    "Runs the run script of the image, or of the application that was asked for.",
    r#"app="${SINGULARITY_APPNAME:-${APPTAINER_APPNAME:-}}"
if [ -n "$app" ]; then
    if [ -x "/scif/apps/$app/scif/runscript" ]; then
        exec "/scif/apps/$app/scif/runscript" "$@"
    fi
    echo "No run script for the application $app" >&2
    exit 1
fi
if [ -x /.singularity.d/runscript ]; then
    exec /.singularity.d/runscript "$@"
fi
exec /bin/sh "$@"
"#
);

const SHELL: &str = action!(
    "Starts a shell: the one asked for, bash, or sh.",
    r#"wanted="${SINGULARITY_SHELL:-${APPTAINER_SHELL:-}}"
if [ -n "$wanted" ] && [ -x "$wanted" ]; then
    exec "$wanted" "$@"
fi
if [ -x /bin/bash ]; then
    PS1="Singularity ${SINGULARITY_NAME:-${APPTAINER_NAME:-image}}:\\w> "
    export PS1
    exec /bin/bash --norc "$@"
fi
if [ -x /bin/sh ]; then
    exec /bin/sh "$@"
fi
echo 'The image has no shell' >&2
exit 1
"#
);

const START: &str = action!(
    "Starts the services of an instance.",
    r#"kill -CONT 1
if [ -x /.singularity.d/startscript ]; then
    exec /.singularity.d/startscript "$@"
fi
"#
);

const TEST: &str = action!(
    "Tests the image, or the application that was asked for.",
    r#"app="${SINGULARITY_APPNAME:-${APPTAINER_APPNAME:-}}"
if [ -n "$app" ]; then
    if [ -x "/scif/apps/$app/scif/test" ]; then
        exec "/scif/apps/$app/scif/test" "$@"
    fi
    echo "No tests for the application $app" >&2
    exit 1
fi
if [ -x /.singularity.d/test ]; then
    exec /.singularity.d/test "$@"
fi
echo 'The image has no tests'
"#
);

const BASE: &str = "#!/bin/sh\n# Read first. The environment of the image follows in 10-docker2singularity.sh.\n";

const ENVIRONMENT: &str = "#!/bin/sh\n# A place for variables of your own.\n";

const APPS: &str = r#"#!/bin/sh
# Environment of a SCIF application.
app="${SINGULARITY_APPNAME:-${APPTAINER_APPNAME:-}}"
if [ -n "$app" ]; then
    SCIF_APPS=/scif/apps
    SCIF_APPROOT="/scif/apps/$app"
    SINGULARITY_APPNAME="$app"
    if [ ! -d "$SCIF_APPROOT" ]; then
        echo "No application $app in this image" >&2
        exit 1
    fi
    if [ -d "$SCIF_APPROOT/bin" ]; then
        PATH="$SCIF_APPROOT/bin:$PATH"
    fi
    if [ -d "$SCIF_APPROOT/lib" ]; then
        LD_LIBRARY_PATH="$SCIF_APPROOT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    fi
    export SCIF_APPS SCIF_APPROOT SINGULARITY_APPNAME PATH LD_LIBRARY_PATH
    for app_file in "$SCIF_APPROOT/scif/env/01-base.sh" "$SCIF_APPROOT/scif/env/90-environment.sh"; do
        if [ -f "$app_file" ]; then
            . "$app_file"
        fi
    done
    unset app_file
fi
unset app
"#;

const LIBRARIES: &str = r#"#!/bin/sh
# Libraries that the runtime binds from the host, and a plain prompt.
LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
PS1='Singularity> '
export LD_LIBRARY_PATH PS1
"#;

const RUNTIME: &str = r#"#!/bin/sh
# What the user asked for on the command line of the runtime.
if [ -n "${SING_USER_DEFINED_PREPEND_PATH:-}" ]; then
    PATH="$SING_USER_DEFINED_PREPEND_PATH:$PATH"
fi
if [ -n "${SING_USER_DEFINED_APPEND_PATH:-}" ]; then
    PATH="$PATH:$SING_USER_DEFINED_APPEND_PATH"
fi
if [ -n "${SING_USER_DEFINED_PATH:-}" ]; then
    PATH="$SING_USER_DEFINED_PATH"
fi
unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH
export PATH
"#;

const STARTSCRIPT: &str = "#!/bin/sh\n# The image starts no services.\n";
