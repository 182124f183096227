//! What is to be looked at now, and when next: a function of the list, what became of images before, and what registries told.

use std::collections::HashSet;
use std::time::Duration;

use image::reference::{ImageSource, Wish as Source};
use time::UtcDateTime;

use super::outcomes::Outcomes;
use super::queue::Taken;
use crate::convert::Request;
use crate::wishlist::Wish;

/// One pass.
#[derive(Debug, Clone, Default)]
pub struct Due {
    /// What to ask for, each image once.
    pub requests: Vec<Request>,
    /// Wishes that are looked at as a whole, by their text.
    pub whole: Vec<String>,
    /// Images that rest after a failure: not to be asked for although their wish is.
    pub resting: HashSet<String>,
    /// When something is due without an event, if nothing is now.
    pub next: Option<UtcDateTime>,
}

/// What is due at `now`, where each wish is looked at every `interval`, unless it has a schedule of its own.
pub fn due(wishes: &[Wish], outcomes: &Outcomes, told: &Taken, interval: Duration, now: UtcDateTime) -> Due {
    let mut due = Due::default();
    let mut next: Option<UtcDateTime> = None;
    let mut at = |moment: UtcDateTime| next = Some(next.map_or(moment, |next: UtcDateTime| next.min(moment)));
    let mut awake: HashSet<&str> = HashSet::new();
    for (name, image) in &outcomes.images {
        match image.next_try {
            Some(moment) if moment.0 > now => {
                due.resting.insert(name.clone());
                at(moment.0);
            }
            Some(_) => drop(awake.insert(name)),
            None => {}
        }
    }
    for wish in wishes {
        let request = |source: Source| wish.request(source);
        // The list's word counts, also where it says to look more often than the command line does.
        let interval = wish.options.schedule.unwrap_or(interval);
        let last = outcomes.wishes.get(&wish.text).map(|moment| moment.0);
        // A clock that went back does not put a wish off.
        let again = last.map_or(now, |last| last.min(now) + interval);
        if told.everything || again <= now {
            due.requests.push(request(wish.source.clone()));
            due.whole.push(wish.text.clone());
            continue;
        }
        at(again);
        let mut asked: HashSet<Source> = HashSet::new();
        let told = told.events.iter().filter_map(|event| event.selects(&wish.source));
        let told = told.filter_map(|source| meant(wish, source));
        // An image that failed before it had a name is asked for by its wish.
        let again =
            outcomes.images.iter().filter(|(name, image)| image.wish == wish.text && awake.contains(name.as_str()));
        let again =
            again.filter_map(
                |(name, _)| if *name == wish.text { Some(wish.source.clone()) } else { Source::parse(name).ok() },
            );
        for source in told.chain(again) {
            if asked.insert(source.clone()) {
                let is_whole = source == wish.source;
                due.requests.push(request(source));
                if is_whole {
                    due.whole.push(wish.text.clone());
                }
            }
        }
    }
    // What was told is looked at whether it rests or not.
    for request in &due.requests {
        if let Source::Image(source) = &request.source
            && !due.whole.contains(&request.text)
        {
            due.resting.remove(&crate::plan::image_name(source));
        }
    }
    for event in &told.events {
        due.resting.retain(|name| !Source::parse(name).is_ok_and(|source| event.selects(&source).is_some()));
    }
    due.next = if due.requests.is_empty() { next } else { Some(now) };
    due
}

/// What a wish wants to have looked at when its registry tells of `source`: nothing if its choice of tags leaves that out, and the
/// whole wish if other images are meant from then on.
fn meant(wish: &Wish, source: Source) -> Option<Source> {
    match &source {
        Source::Image(ImageSource::Registry(image)) if source != wish.source => {
            let is_taken = image.tag().is_some_and(|tag| wish.tags.takes(tag));
            let whole = wish.tags.newest.is_some() || wish.tags.not_older_than.is_some();
            is_taken.then(|| if whole { wish.source.clone() } else { source.clone() })
        }
        _ => Some(source),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::report::{Outcome, Report, WishOutcome};
    use crate::watch::hooks::Event;
    use crate::wishlist::WishList;

    const INTERVAL: Duration = Duration::from_secs(600);

    fn at(seconds: i64) -> UtcDateTime {
        UtcDateTime::from_unix_timestamp(1_795_000_000 + seconds).unwrap()
    }

    fn wishes() -> Vec<Wish> {
        let text =
            "version: 1\ncvmfs_repo: a.b\ninput: ['https://quay.io/tools/app:1', 'https://quay.io/tools/many:2.*']\n";
        WishList::parse(Path::new("w.yaml"), text.as_bytes()).unwrap().wishes
    }

    /// All looked at, at zero; one tag of the wildcard failed.
    fn outcomes() -> Outcomes {
        let mut outcomes = Outcomes::default();
        let mut report = Report::new("x");
        let wish = |text: &str, image: &str, outcome| {
            let error = (outcome == Outcome::Failed).then(|| "no".to_owned());
            WishOutcome { image: Some(image.to_owned()), error, ..WishOutcome::new(text, None, outcome) }
        };
        let list = wishes();
        report.wishes = vec![
            wish(&list[0].text, "https://quay.io/tools/app:1", Outcome::Added),
            wish(&list[1].text, "https://quay.io/tools/many:2.1", Outcome::Added),
            wish(&list[1].text, "https://quay.io/tools/many:2.2", Outcome::Failed),
        ];
        let whole: Vec<String> = list.into_iter().map(|wish| wish.text).collect();
        outcomes.note(&report, &whole, &HashSet::new(), at(0));
        outcomes
    }

    fn texts(due: &Due) -> Vec<String> {
        due.requests.iter().map(|request| request.source.to_string()).collect()
    }

    fn told(repository: &str, tag: &str) -> Taken {
        Taken { events: vec![Event { repository: repository.into(), tag: Some(tag.into()) }], ..Taken::default() }
    }

    #[test]
    fn a_new_list_is_due_at_once_and_then_every_interval() {
        let all = |outcomes: &Outcomes, now| due(&wishes(), outcomes, &Taken::default(), INTERVAL, at(now));
        assert_eq!(all(&Outcomes::default(), 0).whole.len(), 2);
        let outcomes = outcomes();
        let idle = all(&outcomes, 1);
        assert_eq!((texts(&idle), idle.next), (vec![], Some(at(30))));
        let retry = all(&outcomes, 30);
        assert_eq!((texts(&retry), retry.whole.len()), (vec!["https://quay.io/tools/many:2.2".to_owned()], 0));
        assert_eq!(all(&outcomes, 600).whole.len(), 2);
        // A clock that was set back by a day.
        assert_eq!(all(&outcomes, -86400).next.unwrap(), at(-86400 + 600).min(at(30)));
    }

    #[test]
    fn an_event_wakes_what_the_choice_of_tags_means() {
        let text = "version: 2\ncvmfs_repo: a.b\ninput:\n\
                    - {image: 'https://quay.io/tools/app:*', tags: {exclude: '*-rc*'}}\n\
                    - {image: 'https://quay.io/tools/new:*', tags: {newest: 2}}\n";
        let wishes = WishList::parse(Path::new("w.yaml"), text.as_bytes()).unwrap().wishes;
        let mut outcomes = Outcomes::default();
        let whole: Vec<String> = wishes.iter().map(|wish| wish.text.clone()).collect();
        outcomes.note(&Report::new("x"), &whole, &HashSet::new(), at(0));
        let look = |told: &Taken| texts(&due(&wishes, &outcomes, told, INTERVAL, at(1)));
        assert_eq!(look(&told("tools/app", "1")), ["https://quay.io/tools/app:1"]);
        assert_eq!(look(&told("tools/app", "1-rc1")), Vec::<String>::new());
        assert_eq!(look(&told("tools/new", "1.5")), ["https://quay.io/tools/new:*"]);
    }

    #[test]
    fn a_wish_with_a_schedule_is_looked_at_by_it() {
        let text = "version: 2\ncvmfs_repo: a.b\ninput:\n- https://quay.io/tools/app:1\n- {image: 'https://quay.io/tools/many:2.*', schedule: 1h}\n";
        let wishes = WishList::parse(Path::new("w.yaml"), text.as_bytes()).unwrap().wishes;
        let mut outcomes = Outcomes::default();
        let whole: Vec<String> = wishes.iter().map(|wish| wish.text.clone()).collect();
        outcomes.note(&Report::new("x"), &whole, &HashSet::new(), at(0));
        let look = |now| due(&wishes, &outcomes, &Taken::default(), INTERVAL, at(now));
        assert_eq!((look(1).whole, look(1).next), (vec![], Some(at(600))));
        assert_eq!(look(600).whole, ["https://quay.io/tools/app:1"]);
        assert_eq!(look(3600).whole.len(), 2);
    }

    #[test]
    fn events_wake_what_they_name() {
        let outcomes = outcomes();
        let look = |told: &Taken| due(&wishes(), &outcomes, told, INTERVAL, at(1));
        assert_eq!(texts(&look(&told("tools/app", "1"))), ["https://quay.io/tools/app:1"]);
        assert_eq!(texts(&look(&told("tools/many", "2.9"))), ["https://quay.io/tools/many:2.9"]);
        assert!(look(&told("tools/many", "3")).requests.is_empty());
        let failed_before = look(&told("tools/many", "2.2"));
        assert_eq!(texts(&failed_before), ["https://quay.io/tools/many:2.2"]);
        assert!(failed_before.resting.is_empty());
        let flood = look(&Taken { everything: true, ..Taken::default() });
        assert_eq!((flood.whole.len(), flood.resting.len()), (2, 1));
    }
}
