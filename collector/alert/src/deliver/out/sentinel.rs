//! Microsoft Sentinel, by the Logs Ingestion API of Azure Monitor.
//!
//! `POST {endpoint}/dataCollectionRules/{immutable id}/streams/{stream}?api-version=2023-01-01` with a JSON array of rows, gzip, and a
//! bearer token of the client credentials grant (RFC 6749 §4.4) for scope `https://monitor.azure.com/.default`. Success is 204. A call may
//! have 1 MB, packed and unpacked.

use std::time::Duration;

use reqwest::{Client, Response};
use serde::Deserialize;
use spanwatch_common::time::Timestamp;

use super::{BODY_LEN_MAX, Sent, http, pack, secret, whole};
use crate::Alert;
use crate::deliver::courier::Outcome;
use crate::deliver::settings::OutputSettings;

const API_VERSION: &str = "2023-01-01";
/// A token is not used in its last minute: clocks differ, and a request takes time.
const TOKEN_MARGIN: Duration = Duration::from_secs(60);

pub(in crate::deliver) struct Sentinel {
    settings: OutputSettings,
    client: Option<Client>,
    token: Option<Token>,
}

struct Token {
    text: String,
    until: Timestamp,
}

/// What the authority answers (RFC 6749 §5.1).
#[derive(Deserialize)]
struct Grant {
    access_token: String,
    expires_in: u64,
}

impl Sentinel {
    pub(super) const fn new(settings: OutputSettings) -> Self {
        Self { settings, client: None, token: None }
    }

    pub(super) async fn send(&mut self, alerts: &[Alert], now: Timestamp) -> Sent {
        let (lines, shortened) = pack(alerts, &self.settings, BODY_LEN_MAX);
        let body = http::gzip(format!("[{}]", lines.join(",")).as_bytes());
        let outcome = match self.deliver(body, now).await {
            Ok(outcome) | Err(outcome) => outcome,
        };
        Sent { tried: lines.len(), shortened, outcome }
    }

    /// Tries, and once more with a new token if the old one is no longer good.
    async fn deliver(&mut self, body: Vec<u8>, now: Timestamp) -> Result<Outcome, Outcome> {
        let token = self.token(now).await?;
        let mut response = self.post(body.clone(), &token).await?;
        if http::is_unauthorized(&response) {
            self.token = None;
            let token = self.token(now).await?;
            response = self.post(body, &token).await?;
            if http::is_unauthorized(&response) {
                self.token = None;
            }
        }
        Ok(match http::verdict(response).await {
            Outcome::Failed(why, asked) if why.starts_with("answered 403") => {
                let hint = "give the application the role Monitoring Metrics Publisher on the data collection rule";
                Outcome::Failed(format!("{why} ({hint})"), asked)
            }
            other => other,
        })
    }

    async fn post(&mut self, body: Vec<u8>, token: &str) -> Result<Response, Outcome> {
        let client = self.client()?;
        let OutputSettings { endpoint, rule_id, stream, .. } = &self.settings;
        let endpoint = endpoint.trim_end_matches('/');
        let url = format!("{endpoint}/dataCollectionRules/{rule_id}/streams/{stream}?api-version={API_VERSION}");
        let request = client.post(url).bearer_auth(token).header("Content-Type", "application/json");
        request.header("Content-Encoding", "gzip").body(body).send().await.map_err(http::unreachable)
    }

    async fn token(&mut self, now: Timestamp) -> Result<String, Outcome> {
        if let Some(token) = self.token.as_ref().filter(|token| now < token.until) {
            return Ok(token.text.clone());
        }
        let client = self.client()?;
        let OutputSettings { authority, tenant_id, client_id, scope, client_secret_file, .. } = &self.settings;
        let secret = secret(client_secret_file)?;
        let form =
            [("grant_type", "client_credentials"), ("client_id", &**client_id), ("client_secret", &*secret), ("scope", &**scope)];
        let url = format!("{}/{tenant_id}/oauth2/v2.0/token", authority.trim_end_matches('/'));
        let failed = |why: String| Outcome::Failed(format!("get a token: {why}"), None);
        let response = client.post(url).form(&form).send().await.map_err(|error| failed(whole(&error.without_url())))?;
        let status = response.status();
        if !status.is_success() {
            let hint = "are tenant_id, client_id and the secret right, and is the secret still valid?";
            return Err(failed(format!("answered {status}; {hint} {}", http::excerpt(response).await)));
        }
        let answer = response.bytes().await.map_err(|error| failed(whole(&error.without_url())))?;
        let grant: Grant = serde_json::from_slice(&answer).map_err(|_| failed("the answer holds none".to_owned()))?;
        let lasts = Duration::from_secs(grant.expires_in).saturating_sub(TOKEN_MARGIN);
        self.token = Some(Token { text: grant.access_token.clone(), until: now.plus(lasts) });
        Ok(grant.access_token)
    }

    fn client(&mut self) -> Result<Client, Outcome> {
        match &self.client {
            Some(client) => Ok(client.clone()),
            None => Ok(self.client.insert(http::client(&self.settings)?).clone()),
        }
    }
}
