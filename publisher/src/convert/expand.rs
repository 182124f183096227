//! From wishes to images: the tags that are meant, on the platforms that are wished for.

use std::collections::HashMap;
use std::sync::Arc;

use image::platform::PlatformDirectory;
use image::reference::{ImageSource, PublicName, Wildcard, Wish as WishSource};

use super::{Converter, Request};
use crate::error::one_line;
use crate::failure::Failure;
use crate::plan::{Planner, Wanted};
use crate::report::WishOutcome;
use crate::source::Asked;
use crate::startup::GivenList;
use crate::wishlist::{ImageOptions, PlainPath};

/// Images of a wish whose age is looked at, the newest first: each costs up to three requests.
const AGES: usize = 100;

type Expanded = Result<Wanted, Box<WishOutcome>>;

impl Converter<'_> {
    /// The images of all wishes, once for each platform. What two wildcards take with other options belongs to the first one.
    pub(super) fn expand(
        &self,
        planner: &mut Planner<'_>,
        requests: &[Request],
        is_wanted: &dyn Fn(&Wanted) -> bool,
    ) -> Vec<Expanded> {
        let mut seen: HashMap<(PublicName, Option<PlatformDirectory>), Arc<ImageOptions>> = HashMap::new();
        let mut all = Vec::new();
        for request in requests {
            let is_wildcard = matches!(request.source, WishSource::Wildcard(_));
            let mut is_new = |wanted: &Wanted| {
                let place = (wanted.name.clone(), wanted.place.clone());
                !is_wildcard || *seen.entry(place).or_insert_with(|| wanted.options.clone()) == wanted.options
            };
            let images = self.images(planner, request).into_iter();
            all.extend(images.filter(|w| w.as_ref().map_or(true, |w| is_wanted(w) && is_new(w))));
        }
        all
    }

    /// The images of a wish; a wildcard has many.
    fn images(&self, planner: &mut Planner<'_>, request: &Request) -> Vec<Expanded> {
        let refuse = |e: Failure| Box::new(WishOutcome::failed(&request.text, request.line, one_line(&e)));
        let sources = match &request.source {
            WishSource::Image(source) => Ok(vec![source.clone()]),
            WishSource::Wildcard(wildcard) => self.tags(planner, request, wildcard),
        };
        let sources = match sources {
            Ok(sources) => sources,
            Err(e) => return vec![Err(refuse(e))],
        };
        let named = |source: &ImageSource| match &request.name {
            Some(name) => Ok(name.clone()),
            None => source.public_path(None).map_err(|e| refuse(e.into())),
        };
        let startup = match (&request.startup, &request.options.startup) {
            (None, Some(path)) => GivenList::read(path).map(|list| Some(Arc::new(list))),
            (given, _) => Ok(given.clone()),
        };
        let startup = match startup {
            Ok(startup) => startup,
            Err(e) => return vec![Err(refuse(e))],
        };
        let on_platforms = |source: ImageSource| Ok(self.on_platforms(request, &source, &named(&source)?, &startup));
        let expanded = sources.into_iter().map(on_platforms);
        expanded.flat_map(|images| images.map_or_else(|e| vec![Err(e)], |w| w.into_iter().map(Ok).collect())).collect()
    }

    fn on_platforms(
        &self,
        request: &Request,
        source: &ImageSource,
        name: &PublicName,
        startup: &Option<Arc<GivenList>>,
    ) -> Vec<Wanted> {
        let options = &request.options;
        let platforms = if options.platforms.is_empty() { &self.options.platforms } else { &options.platforms };
        let several = platforms.len() > 1 || options.plain_path == Some(PlainPath::Variant);
        let wanted = |(n, platform): (usize, &image::platform::Platform)| Wanted {
            wish: request.text.clone(),
            line: request.line,
            source: source.clone(),
            name: name.clone(),
            owner: request.owner.clone(),
            priority: request.priority,
            platform: platform.clone(),
            place: (n > 0).then(|| platform.directory()),
            several,
            options: Arc::clone(options),
            startup: startup.clone(),
        };
        platforms.iter().enumerate().map(wanted).collect()
    }

    /// The images that a wildcard means now.
    fn tags(
        &self,
        planner: &mut Planner<'_>,
        request: &Request,
        wildcard: &Wildcard,
    ) -> Result<Vec<ImageSource>, Failure> {
        let selection = &request.tags;
        let credentials = request.options.credentials.as_deref();
        let tags = self.sources.tags(wildcard.repository(), credentials)?;
        let matching = tags.iter().map(String::as_str).filter(|tag| wildcard.select(tag).is_some());
        let candidates = selection.candidates(matching);
        let oldest = selection.not_older_than.map(|age| self.target.clock.now() - age);
        let platforms = [&request.options.platforms, &self.options.platforms];
        let platform = platforms.into_iter().flatten().next().expect("there is a default platform");
        let mut found = Vec::new();
        for (n, tag) in candidates.iter().enumerate() {
            if found.len() >= selection.count() {
                break;
            }
            let source = ImageSource::Registry(wildcard.select(tag).expect("it was selected above"));
            if let Some(oldest) = oldest {
                if n == AGES {
                    tracing::warn!(
                        wish = request.text,
                        left_out = candidates.len() - n,
                        "not every tag is looked at; narrow the wish"
                    );
                    break;
                }
                // What can't be read is reported as an image that fails.
                let created = planner.created(Asked::new(&source, credentials), platform).ok().flatten();
                if created.is_some_and(|created| created < oldest) {
                    continue;
                }
            }
            found.push(source);
        }
        found.sort();
        Ok(found)
    }
}
