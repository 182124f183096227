//! The command: verify, and with `--fix` convert again what differs and verify once more.

use std::sync::Arc;

use image::reference::{ImageSource, Wish};

use super::{Damage, Options, Report, Verifier};
use crate::cli::{Verify, print_result};
use crate::config::Config;
use crate::convert::Request;
use crate::error::{CommandError, ExitStatus};
use crate::failure::Failure;
use crate::pass::Workshop;
use crate::plan::ImagePlan;
use crate::podman::PodmanState;
use crate::progress::Progress;
use crate::removal::Owner;
use crate::repair::damaged::Damaged;
use crate::report;
use crate::target::Target;
use crate::wishlist::ImageOptions;

/// Runs `verify`. `open` opens the repository: once to look at it, and once to publish.
pub fn verify(
    arguments: &Verify,
    open: &dyn Fn() -> Result<Target, CommandError>,
    config: &Config,
    json: bool,
    progress: Arc<dyn Progress>,
) -> Result<ExitStatus, CommandError> {
    if let Some(name) = &arguments.credentials {
        // Otherwise the image would be compared with itself, since no registry can be asked.
        config.registries.has(name).map_err(CommandError::config)?;
    }
    let workshop = Workshop::new(&arguments.conversion, config, progress.clone())?;
    let options = Options {
        data: arguments.data,
        offline: arguments.offline,
        from: arguments.from.clone(),
        credentials: arguments.credentials.clone(),
        show: arguments.show,
        limits: arguments.conversion.limits.clone(),
    };
    let look = || {
        let verifier = Verifier::new(open()?).map_err(Failure::into_command_error)?;
        let sources = workshop.converter(verifier.target()).sources;
        let found = verifier.verify(&arguments.image, &sources, &options, &*progress);
        found.map_err(|e| e.into_command_error().context(format!("cannot verify {}", arguments.image)))
    };
    let (mut report, owners) = look()?;
    if arguments.fix && !report.same {
        if !json {
            print_result(&report.to_text())?;
        }
        let target = open()?;
        let mended = fix(&workshop, &target, arguments, &report, &owners)
            .map_err(|e| e.into_command_error().context(format!("cannot convert {} again", arguments.image)))?;
        if !json {
            print_result(&mended.to_text())?;
        }
        (report, _) = look()?;
    }
    print_result(&if json { report.to_json() } else { report.to_text() })?;
    Ok(report.exit_status())
}

/// Converts what is damaged again: what differs counts as absent.
fn fix(
    workshop: &Workshop,
    target: &Target,
    arguments: &Verify,
    report: &Report,
    owners: &[Owner],
) -> Result<report::Report, Failure> {
    let mut converter = workshop.converter(target);
    converter.options.limits = arguments.conversion.limits.clone();
    let mut requests = Vec::new();
    let mut damages: Vec<&Damage> = Vec::new();
    let mut noted = Damaged::read(target)?;
    for (image, owner) in report.images.iter().zip(owners).filter(|(image, _)| !image.same) {
        if let Some(platform) = &owner.platform {
            return Err(Failure::Content(format!(
                "{} differs for {platform}: only the default platform is converted again here; convert the wish list",
                image.path
            )));
        }
        // Without its record, an image has no other name than its path, which says no scheme.
        let recorded = || ImageSource::parse(&image.image).ok().filter(|_| image.digest.is_some());
        let recorded = || recorded().filter(|s| matches!(s, ImageSource::Registry(_)));
        let source = arguments.from.clone().or_else(recorded).or_else(|| ImageSource::parse(&arguments.image).ok());
        let source = source.ok_or_else(|| {
            Failure::Content("no record says where the image came from; say it with --from".to_owned())
        })?;
        noted.layers.extend(&image.damage.layers);
        requests.push(Request { name: Some(owner.name.clone()), ..Request::new(&image.image, Wish::Image(source)) });
        damages.push(&image.damage);
    }
    let options = ImageOptions { credentials: arguments.credentials.clone(), ..ImageOptions::default() };
    let options = Arc::new(options);
    requests.iter_mut().for_each(|request| request.options = options.clone());
    noted.write(target)?;
    let mut plan = converter.plan(&requests)?;
    for (image, damage) in plan.images.iter_mut().zip(damages) {
        if let Ok(image) = image {
            mark(image, damage);
        }
    }
    converter.apply(&plan)
}

/// Has a plan replace what is damaged besides layers.
fn mark(plan: &mut ImagePlan, damage: &Damage) {
    if damage.flat {
        (plan.needs_flat, plan.flat_damaged) = (true, true);
    }
    plan.wrong.extend(damage.paths.iter().cloned());
    let is_podman = |path: &image::layout::OwnedPath| matches!(path, image::layout::OwnedPath::PodmanFile(_));
    if damage.paths.iter().any(is_podman) {
        plan.podman = Some(PodmanState::Updated);
    }
    // Has it published, whatever else is to be done.
    plan.needs_records = true;
}
