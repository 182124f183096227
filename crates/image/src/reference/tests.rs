//! The forms of names, accepted and refused; the vectors of the existing tool.

use super::*;

fn digest() -> String {
    format!("sha256:{}", "ab".repeat(32))
}

#[test]
fn prints_the_full_form_of_every_spelling() {
    for (text, whole) in [
        ("hub.docker.com/library/redis:5", "https://hub.docker.com/library/redis:5"),
        (
            "https://registry.hub.docker.com/library/debian:stable",
            "https://registry.hub.docker.com/library/debian:stable",
        ),
        ("debian:stable", "https://registry.hub.docker.com/library/debian:stable"),
        ("docker.io/debian:stable", "https://registry.hub.docker.com/library/debian:stable"),
        ("docker.io/library/debian:stable", "https://registry.hub.docker.com/library/debian:stable"),
        ("index.docker.io/user/app:1", "https://registry.hub.docker.com/user/app:1"),
        ("docker://user/app:1", "https://registry.hub.docker.com/user/app:1"),
        ("user/app:1", "https://registry.hub.docker.com/user/app:1"),
        ("localhost/app:1", "https://localhost/app:1"),
        ("http://localhost:5000/app:1", "http://localhost:5000/app:1"),
        ("host:5000/a/b/c:1", "https://host:5000/a/b/c:1"),
        ("http://127.0.0.1:5000/demo/python:3.12-slim", "http://127.0.0.1:5000/demo/python:3.12-slim"),
        ("http://[::1]:5000/app:1", "http://[::1]:5000/app:1"),
        ("https://QUAY.io/a/b:V1", "https://quay.io/a/b:V1"),
        ("quay.io//a/b:1", "https://quay.io/a/b:1"),
        ("quay.io/a/b__c-d--e.f:1", "https://quay.io/a/b__c-d--e.f:1"),
        ("quay.io/a:1*", "https://quay.io/a:1*"),
        ("quay.io/a:*", "https://quay.io/a:*"),
        ("oci:/tmp/x:1", "oci:/tmp/x:1"),
        ("oci:/tmp/a:b/x", "oci:/tmp/a:b/x"),
        ("docker-archive:/tmp/x.tar", "docker-archive:/tmp/x.tar"),
    ] {
        let wish = Wish::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(wish.to_string(), whole, "{text}");
        assert_eq!(Wish::parse(whole).unwrap(), wish, "{text}");
    }
}

#[test]
fn refuses_what_names_no_image() {
    use ReferenceError as E;
    let both = format!("quay.io/a:1*@{}", digest());
    let long_tag = format!("quay.io/a:{}", "x".repeat(129));
    let long_name = format!("quay.io/{}:1", "x".repeat(255));
    let very_long = "x".repeat(2000);
    type Check = fn(&E) -> bool;
    let table: &[(&str, Check)] = &[
        ("", |e| matches!(e, E::Text(_))),
        ("quay.io/a b:1", |e| matches!(e, E::Text(_))),
        ("quay.io/a:1\n", |e| matches!(e, E::Text(_))),
        (&very_long, |e| matches!(e, E::Text(_))),
        ("ftp://quay.io/a:1", |e| matches!(e, E::Scheme { .. })),
        ("oci://quay.io/a:1", |e| matches!(e, E::Scheme { .. })),
        ("https://ubuntu:latest", |e| matches!(e, E::Registry { .. })),
        ("https://user@quay.io/a:1", |e| matches!(e, E::Registry { .. })),
        ("quay.io:0/a:1", |e| matches!(e, E::Registry { .. })),
        ("quay.io:70000/a:1", |e| matches!(e, E::Registry { .. })),
        ("quay.io:/a:1", |e| matches!(e, E::Registry { .. })),
        ("-x.io/a:1", |e| matches!(e, E::Registry { .. })),
        ("http://[::1]5000/a:1", |e| matches!(e, E::Registry { .. })),
        ("http://[::z]/a:1", |e| matches!(e, E::Registry { .. })),
        ("../a:1", |e| matches!(e, E::Registry { .. })),
        ("https://quay.io", |e| matches!(e, E::Repository { .. })),
        ("https://quay.io/:1", |e| matches!(e, E::Repository { .. })),
        ("quay.io/a/../b:1", |e| matches!(e, E::Repository { .. })),
        ("quay.io/a/.b:1", |e| matches!(e, E::Repository { .. })),
        ("quay.io/a//b:1", |e| matches!(e, E::Repository { .. })),
        ("quay.io/A:1", |e| matches!(e, E::Repository { .. })),
        ("quay.io/a___b:1", |e| matches!(e, E::Repository { .. })),
        ("quay.io/a*:1", |e| matches!(e, E::Repository { .. })),
        ("quay.io/a?x=1", |e| matches!(e, E::Repository { .. })),
        (&long_name, |e| matches!(e, E::Repository { .. })),
        ("hub.docker.com/library/redis:5:4", |e| matches!(e, E::Tag { .. })),
        ("quay.io/a:1/b:2", |e| matches!(e, E::Tag { .. })),
        ("quay.io/a:", |e| matches!(e, E::Tag { .. })),
        ("quay.io/a:.1", |e| matches!(e, E::Tag { .. })),
        ("quay.io/a:-*", |e| matches!(e, E::Tag { .. })),
        (&long_tag, |e| matches!(e, E::Tag { .. })),
        ("hub.docker.com/library/redis:5@sha256:aaabbbccc", |e| matches!(e, E::Digest { .. })),
        ("quay.io/a@md5:12", |e| matches!(e, E::Digest { .. })),
        ("hub.docker.com/library/redis/", |e| matches!(e, E::NoTagNoDigest(_))),
        ("debian", |e| matches!(e, E::NoTagNoDigest(_))),
        (&both, |e| matches!(e, E::WildcardWithDigest(_))),
        ("oci:", |e| matches!(e, E::NoPath(_))),
        ("oci::1", |e| matches!(e, E::NoPath(_))),
        ("oci:/x:.y", |e| matches!(e, E::Tag { .. })),
        ("docker-archive:", |e| matches!(e, E::NoPath(_))),
    ];
    for (text, expected) in table {
        match Wish::parse(text) {
            Ok(wish) => panic!("{text} was accepted as {wish}"),
            Err(error) => assert!(expected(&error), "{text}: {error:?}"),
        }
    }
}

#[test]
fn says_what_to_write_when_the_tag_is_missing() {
    let message = Wish::parse("quay.io/a").unwrap_err().to_string();
    assert!(message.contains("quay.io/a:latest") && message.contains("quay.io/a@sha256:"), "{message}");
}

#[test]
fn derives_the_names_of_the_existing_tool() {
    let both = Reference::parse(&format!("http://r:5000/x/y:1@{}", digest())).unwrap();
    assert_eq!(both.simple_name(), "r:5000/x/y:1");
    assert_eq!(both.whole_name(), format!("http://r:5000/x/y:1@{}", digest()));
    assert_eq!(both.suffix(), format!(":1@{}", digest()));
    assert_eq!(both.simple_reference(), "1");
    assert_eq!(both.target(), digest());
    assert_eq!(both.public_path().unwrap().as_str(), "r:5000/x/y:1");
    let bare = Reference::parse(&format!("r.io/x@{}", digest())).unwrap();
    assert_eq!(bare.simple_name(), "r.io/x");
    let public = bare.public_path().unwrap();
    assert_eq!(public.as_str(), format!("r.io/x:{}", digest()));
    assert_eq!((public.directory(), public.repository()), ("r.io", "r.io/x"));
    assert_eq!((public.reference(), public.depth()), (digest().as_str(), 1));
    let hub = Reference::parse("debian:stable").unwrap();
    assert_eq!((hub.registry_host(), hub.api_host()), ("registry.hub.docker.com", "registry-1.docker.io"));
}

#[test]
fn takes_only_literal_characters_and_stars() {
    for (pattern, tag, expected) in [
        ("*-foo", "bar-foo", true),
        ("*-foo", "ubuntu-foo", true),
        ("*-foo", "foo-bar", false),
        ("rhel7-m*", "rhel7-m1", true),
        ("rhel7-m*", "rhel7", false),
        ("rhel7-m*", "tmp-rhel7-m1", false),
        ("21.2.1*", "21.2.10", true),
        ("21.2.1*", "21.2.100-20191127", true),
        ("21.2.1*", "21.2.15-20180118", true),
        ("21.2.1*", "21.3.10", false),
        ("21.2.1*", "21x2.10", false),
        ("*", "anything", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("a*a", "a", false),
        ("a*a", "aa", true),
        ("a**b", "ab", true),
    ] {
        assert_eq!(TagPattern::parse(pattern).unwrap().matches(tag), expected, "{pattern} {tag}");
    }
    assert!(TagPattern::parse("rhel7").is_err(), "no star, no pattern");
    let Wish::Wildcard(wildcard) = Wish::parse("r.io/x:1.*").unwrap() else { panic!("a wildcard") };
    assert_eq!(wildcard.select("1.2").unwrap().to_string(), "https://r.io/x:1.2");
    assert_eq!(wildcard.select("2.2"), None);
    assert_eq!(wildcard.select("1./../x"), None, "registries may list anything");
}

#[test]
fn tags_of_signatures_are_none_of_a_wildcard_that_does_not_say_so() {
    let taken = |pattern: &str, tag: &str| {
        let Wish::Wildcard(wildcard) = Wish::parse(&format!("r.io/x:{pattern}")).unwrap() else { panic!("a wildcard") };
        wildcard.select(tag).is_some()
    };
    let hex = "a1".repeat(32);
    for suffix in ["", ".sig", ".att", ".sbom"] {
        let tag = format!("sha256-{hex}{suffix}");
        assert!(!taken("*", &tag) && !taken("*.sig", &tag) && !taken("sha*", &tag), "{tag}");
        assert!(taken("sha256-*", &tag), "{tag}");
    }
    for tag in ["sha256-a1", &format!("sha256-{}", "g1".repeat(32)), &format!("sha256-{hex}-x"), &format!("x-{hex}")] {
        assert!(taken("*", tag), "{tag}");
    }
}

#[test]
fn keeps_images_out_of_internal_trees() {
    for text in [
        ".flat/x:1",
        ".layers:1",
        "./x:1",
        "../x:1",
        "podmanStore/x:1",
        "podmanStore:1",
        "new_repository:1",
        "new_repository/x:1",
        "a/.b:1",
        "a/../b:1",
        "a//b:1",
        "/a:1",
        "a/:1",
        "a",
        "a:",
        "a:b:c",
        "A/x:1",
        "a/x:1*",
        "",
    ] {
        assert!(PublicName::parse(text).is_err(), "{text} was accepted");
    }
    assert!(Reference::parse("https://podmanStore/x:1").unwrap().public_path().is_err());
    let long = format!("a/{}:{}", "x".repeat(200), "y".repeat(100));
    assert!(PublicName::parse(&long).is_err());
    for text in ["debian:12", "local/x:1", "host:5000/x/y:1", "[::1]:5000/x:1"] {
        assert_eq!(PublicName::parse(text).unwrap().as_str(), text);
    }
}

#[test]
fn names_images_from_disk() {
    let name = |text: &str, found| ImageSource::parse(text).unwrap().public_path(found).map(|name| name.to_string());
    assert_eq!(name("oci:/tmp/app/:2", None).unwrap(), "local/app:2");
    assert_eq!(name("oci:/tmp/app", Some("3")).unwrap(), "local/app:3");
    assert_eq!(name("docker-archive:app.tar", None).unwrap(), "local/app.tar:latest");
    assert!(
        name("docker-archive:/tmp/My App".replace(' ', "").as_str(), None).unwrap_err().to_string().contains("--as")
    );
}
