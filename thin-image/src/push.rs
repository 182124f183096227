//! Whose password goes with a push; the push itself is `registry::thin`.

use image::digest::ManifestDigest;
use image::reference::Reference;
use registry::thin::{PASSWORDS, password};
use registry::{Client, Credential, Credentials, Error};

pub use registry::push::Pushed;

use crate::build::Thin;

/// The credentials of this process, with those of `user` for the registry of `target`.
pub fn credentials(
    target: &Reference,
    user: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Credentials, Error> {
    let credentials = Credentials::from_variables(&variable)?;
    let Some(user) = user else { return Ok(credentials) };
    let absent = || Error::Configuration(format!("no password for user {user}: set {}", PASSWORDS.join(" or ")));
    let password = password(variable)?.ok_or_else(absent)?;
    Ok(credentials.with(target.registry_host(), Credential::password(user, password)))
}

/// Makes sure that `target` is this image.
pub async fn push(client: &Client, thin: &Thin, target: &Reference) -> Result<(ManifestDigest, Pushed), Error> {
    client.push_thin(&thin.images, thin.index.as_ref(), target).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_needs_a_password() {
        let target = Reference::parse("registry.example.org/x:1").unwrap();
        assert!(matches!(credentials(&target, Some("me"), |_| None), Err(Error::Configuration(_))));
        assert!(credentials(&target, None, |_| None).is_ok());
        let old = |name: &str| (name == "DUCC_OUTPUT_REGISTRY_PASS").then(|| "secret".to_owned());
        assert!(credentials(&target, Some("me"), old).is_ok());
    }
}
