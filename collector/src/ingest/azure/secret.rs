//! Credentials, and keeping them out of everything that people read.

use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};

/// What opens a container.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A shared access signature: the query string without its `?`.
    Sas(String),
    /// The key of the storage account, in base64.
    Key(String),
    /// Whatever the environment offers: `AZURE_STORAGE_SAS_TOKEN`, `AZURE_STORAGE_ACCOUNT_KEY`, a service principal, a
    /// workload identity, or the managed identity of this machine.
    Environment,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sas(_) => "Sas(…)",
            Self::Key(_) => "Key(…)",
            Self::Environment => "Environment",
        })
    }
}

impl Credential {
    /// From a file that holds a SAS token, an account key, or a connection string with either.
    ///
    /// # Errors
    /// The file cannot be read, or holds none of these.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let trouble = || format!("read the credential file {} (does it exist, and may this user read it?)", path.display());
        let text = std::fs::read_to_string(path).with_context(trouble)?;
        match Self::parse(&text) {
            Some(credential) => Ok(credential),
            None => {
                bail!("{} holds no credential; write a SAS token, an account key or a connection string into it", path.display())
            }
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.contains("AccountKey=") || text.contains("SharedAccessSignature=") {
            let value = |name: &str| text.split(';').find_map(|part| part.trim().strip_prefix(name)).map(str::to_owned);
            return value("SharedAccessSignature=").map(Self::Sas).or_else(|| value("AccountKey=").map(Self::Key));
        }
        // A whole URL may have been pasted.
        let query = text.rsplit_once('?').map_or(text, |(_, query)| query);
        if query.split('&').any(|pair| pair.starts_with("sig=")) {
            return Some(Self::Sas(query.to_owned()));
        }
        let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        (text.len() >= 40 && text.bytes().all(is_base64)).then(|| Self::Key(text.to_owned()))
    }
}

/// `text` without the query of any URL in it, and without any signature: what libraries say about requests may go into logs.
pub fn redact(text: &str) -> String {
    let is_end = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ')' | '>' | '<' | ',' | ';' | '`');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // A signature may also stand outside a URL.
    while let Some(start) = [rest.find("://"), rest.find("sig=")].into_iter().flatten().min() {
        let (before, found) = rest.split_at(start);
        out.push_str(before);
        let (word, after) = found.split_at(found.find(is_end).unwrap_or(found.len()));
        match word.strip_prefix("sig=") {
            Some(signature) => {
                out.push_str("sig=…");
                out.push_str(signature.find('&').and_then(|end| signature.get(end..)).unwrap_or_default());
            }
            None => out.push_str(word.split(['?', '#']).next().unwrap_or_default()),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_never_comes_through() {
        let said = "GET https://a.blob.core.windows.net/c/b.json?sv=2024&sig=SECRET%3D&se=1: 403; (sig=SECRET&sp=r) see \"http://x/y?sig=SECRET\"";
        let shown = redact(said);
        assert!(!shown.contains("SECRET"), "{shown}");
        assert_eq!(shown, "GET https://a.blob.core.windows.net/c/b.json 403; (sig=…&sp=r) see \"http://x/y\"");
        assert!(!format!("{:?}", Credential::Sas("sig=SECRET".to_owned())).contains("SECRET"));
    }

    #[test]
    fn a_credential_file_may_hold_what_the_portal_offers() {
        let key = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5eg==";
        assert_eq!(Credential::parse(&format!(" {key}\n")), Some(Credential::Key(key.to_owned())));
        assert_eq!(Credential::parse("?sv=1&sig=x%3D\n"), Some(Credential::Sas("sv=1&sig=x%3D".to_owned())));
        assert_eq!(Credential::parse("https://a.example/c?sv=1&sig=x"), Some(Credential::Sas("sv=1&sig=x".to_owned())));
        let connection = format!("DefaultEndpointsProtocol=https;AccountName=a;AccountKey={key};EndpointSuffix=core.windows.net");
        assert_eq!(Credential::parse(&connection), Some(Credential::Key(key.to_owned())));
        assert_eq!(Credential::parse("hello"), None);
        assert_eq!(Credential::parse(""), None);
    }
}
