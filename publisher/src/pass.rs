//! One pass, whoever asks for it: what is needed to ask registries and to push thin images, and the report of all that.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use image::platform::Platform;
use registry::{Budgets, Client, ClientConfig, Credentials};
use tokio::runtime::{Handle, Runtime};

use crate::cli::{Conversion, Notifications};
use crate::config::Config;
use crate::convert::{ConvertOptions, Converter, Plan, RoomLimits};
use crate::error::CommandError;
use crate::failure::Failure;
use crate::notify::Notifier;
use crate::podman::InStore;
use crate::progress::Progress;
use crate::pulse::Pulse;
use crate::report::Report;
use crate::source::Sources;
use crate::stop::Stop;
use crate::target::Target;
use crate::thin;

/// Where thin images go: the template of their names and the user who pushes them.
pub type Thin<'a> = Option<(&'a str, &'a str)>;

/// What outlives a pass: connections, tokens, options.
#[derive(Debug)]
pub struct Workshop {
    runtime: Runtime,
    client: Client,
    anonymous: Client,
    config: Config,
    budgets: Budgets,
    options: ConvertOptions,
    progress: Arc<dyn Progress>,
    notifier: Option<Notifier>,
    stop: Stop,
    pulse: Pulse,
}

impl Workshop {
    /// From the command line, the configuration and the environment. Signals stop what is under way.
    pub fn new(conversion: &Conversion, config: &Config, progress: Arc<dyn Progress>) -> Result<Self, CommandError> {
        let runtime = runtime()?;
        let budgets = Budgets::default();
        let client = Client::new(ClientConfig {
            credentials: Credentials::from_env().map_err(CommandError::config)?,
            document_limit: conversion.limits.max_manifest_size,
            registries: config.registries.clone(),
            budgets: budgets.clone(),
            ..ClientConfig::default()
        })
        .map_err(CommandError::config)?;
        let anonymous = Client::new(ClientConfig {
            registries: config.registries.for_strangers().into(),
            budgets: budgets.clone(),
            ..ClientConfig::default()
        });
        let anonymous = anonymous.map_err(CommandError::config)?;
        let stop = Stop::default();
        stop.at_signals(runtime.handle()).map_err(CommandError::failed)?;
        let options = ConvertOptions { policy: config.policy.clone(), ..convert_options(conversion)? };
        Ok(Self {
            client,
            anonymous,
            config: config.clone(),
            budgets,
            options,
            progress,
            notifier: None,
            stop,
            pulse: Pulse::default(),
            runtime,
        })
    }

    /// The same, which tells others what happens.
    pub fn telling(mut self, notifications: &Notifications) -> Result<Self, CommandError> {
        if let Some(notifier) = Notifier::start(notifications, &self.stop)? {
            self.progress = Arc::new(notifier.telling(self.progress.clone()));
            self.notifier = Some(notifier);
        }
        Ok(self)
    }

    /// The same, whose answers of registries are signs of life.
    #[must_use]
    pub fn with_pulse(self, pulse: Pulse) -> Self {
        Self { pulse, ..self }
    }

    /// How many notifications reached nobody.
    pub fn undelivered(&self) -> u64 {
        self.notifier.as_ref().map_or(0, Notifier::undelivered)
    }

    /// How often registries were asked, and which of them are paused.
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Who says when to stop.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Where asynchronous work runs.
    pub fn runtime(&self) -> &Handle {
        self.runtime.handle()
    }

    /// A converter for a repository.
    pub fn converter<'a>(&self, target: &'a Target) -> Converter<'a> {
        let sources = Sources::new(self.client.clone(), self.runtime().clone(), target.scratch());
        let sources = sources.with_stop(self.stop.clone()).with_pulse(self.pulse.clone());
        Converter {
            target,
            sources: sources.with_anonymous(self.anonymous.clone()),
            options: self.options.clone(),
            progress: self.progress.clone(),
        }
    }

    /// Executes a plan, then pushes the thin images of what is published.
    pub fn execute(&self, converter: &Converter<'_>, plan: &Plan, thin: Thin<'_>) -> Result<Report, CommandError> {
        // Before anything is published: a password that is missing is found at once.
        let pusher = match thin {
            Some((format, user)) => {
                let credentials =
                    thin::credentials(format, user, &thin::references(plan), |name| std::env::var(name).ok())
                        .map_err(CommandError::config)?;
                let (registries, budgets) = (self.config.registries.clone(), self.budgets.clone());
                let config = ClientConfig { credentials, registries, budgets, ..ClientConfig::default() };
                Some((format, Client::new(config).map_err(CommandError::failed)?))
            }
            None => None,
        };
        if let Some(notifier) = &self.notifier {
            plan.images.iter().filter_map(|image| image.as_ref().err()).for_each(|wish| notifier.refused(wish));
        }
        let mut report = converter.apply(plan).map_err(Failure::into_command_error)?;
        if let Some(notifier) = &self.notifier {
            notifier.published(converter.target, &report);
        }
        if let Some((format, client)) = pusher
            && self.stop.asked().is_none()
        {
            thin::push(&client, self.runtime(), format, &converter.target.fqrn, plan, &mut report);
        }
        Ok(report)
    }
}

/// Lets `work` ask registries, as the configuration and the environment say.
pub fn asking<T>(config: &Config, work: impl FnOnce(&Sources) -> T) -> Result<T, CommandError> {
    let runtime = runtime()?;
    let credentials = Credentials::from_env().map_err(CommandError::config)?;
    let registries = config.registries.clone();
    let client = Client::new(ClientConfig { credentials, registries, ..ClientConfig::default() });
    let client = client.map_err(CommandError::config)?;
    let scratch = tempfile::tempdir().map_err(CommandError::failed)?;
    let stop = Stop::default();
    stop.at_signals(runtime.handle()).map_err(CommandError::failed)?;
    Ok(work(&Sources::new(client, runtime.handle().clone(), scratch.path()).with_stop(stop)))
}

fn runtime() -> Result<Runtime, CommandError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().map_err(CommandError::failed)
}

fn convert_options(conversion: &Conversion) -> Result<ConvertOptions, CommandError> {
    let parsed: Result<Vec<Platform>, _> = conversion.platform.iter().map(|text| Platform::parse(text)).collect();
    let mut platforms = parsed.map_err(CommandError::usage)?;
    if platforms.is_empty() {
        platforms.push(Platform::new("linux", std::env::consts::ARCH, None).map_err(CommandError::usage)?);
    }
    let mut places = HashSet::new();
    if let Some(twice) = platforms.iter().find(|platform| !places.insert(platform.directory())) {
        let what =
            format!("--platform {twice}: its images are below .multiarch/{}, where others are", twice.directory());
        return Err(CommandError::usage(std::io::Error::other(what)));
    }
    let threads = || std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
    Ok(ConvertOptions {
        platforms,
        jobs: conversion.jobs.map_or_else(threads, NonZeroUsize::get),
        room: RoomLimits { preparing: conversion.max_preparing, keep_free: conversion.keep_free },
        permissions: conversion.flat_permissions,
        limits: conversion.limits.clone(),
        in_store: InStore::Follow,
        store_limit: conversion.podman_limit,
        policy: Arc::default(),
    })
}
