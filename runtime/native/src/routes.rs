//! Which app answers a request, by the rules of `runtime/ingress/routing.py`; a route without an app is the Python path's.

use std::collections::HashMap;

/// The node's own paths, and where certificate authorities look: the Python path answers there, and no app does.
const KEPT: [&str; 3] = ["/.freehold", "/.well-known/acme-challenge", "/.well-known/pki-validation"];
const SEGMENTS_MAX: usize = 64;

/// An immutable table: host (None: any), normal prefix, and the number of an app that this engine serves.
#[derive(Default, Debug)]
pub struct Routes {
    hosts: HashMap<String, HashMap<String, Option<u64>>>,
    any_host: HashMap<String, Option<u64>>,
}

impl Routes {
    /// The prefixes and hosts are normal already: Python has built its own table of them.
    pub fn new(routes: Vec<(Option<String>, String, Option<u64>)>) -> Routes {
        let mut table = Routes::default();
        for (host, prefix, app) in routes {
            let of_host = match host {
                Some(host) => table.hosts.entry(host).or_default(),
                None => &mut table.any_host,
            };
            of_host.insert(prefix, app);
        }
        table
    }

    /// The app for an authority and a path; None where the Python path must look.
    pub fn find(&self, authority: &str, path: &str) -> Option<u64> {
        let below = |kept: &str| path.strip_prefix(kept).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if path.starts_with("/.") && KEPT.into_iter().any(below) {
            return None;
        }
        if !self.hosts.is_empty() {
            let host = authority.split(':').next().unwrap_or("").trim_end_matches('.').to_ascii_lowercase();
            if let Some(found) = self.hosts.get(&host).and_then(|table| longest(table, path)) {
                return found;
            }
        }
        longest(&self.any_host, path).flatten()
    }
}

fn longest(table: &HashMap<String, Option<u64>>, path: &str) -> Option<Option<u64>> {
    if table.is_empty() {
        return None;
    }
    let mut candidate = match path.match_indices('/').nth(SEGMENTS_MAX + 1) {
        Some((cut, _)) => &path[..cut],
        None => path,
    };
    loop {
        if let Some(target) = table.get(candidate) {
            return Some(*target);
        }
        candidate = &candidate[..candidate.rfind('/')?];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Routes {
        let route = |host: Option<&str>, prefix: &str, app| (host.map(str::to_owned), prefix.to_owned(), app);
        Routes::new(vec![
            route(None, "", Some(1)),
            route(None, "/a", Some(2)),
            route(Some("h.test"), "/a/b", Some(3)),
            route(Some("h.test"), "/far", None),
        ])
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        assert_eq!(table().find("x", "/a/b"), Some(2));
        assert_eq!(table().find("x", "/ab"), Some(1));
        assert_eq!(table().find("H.test.:80", "/a/b/c"), Some(3));
        assert_eq!(table().find("h.test", "/a/bc"), Some(2));
    }

    #[test]
    fn what_another_serves_is_not_ours() {
        assert_eq!(table().find("h.test", "/far/x"), None);
        assert_eq!(table().find("x", "/.freehold/x"), None);
        assert_eq!(table().find("x", "/.freeholdx"), Some(1));
        assert_eq!(table().find("x", "/.well-known/acme-challenge/token"), None);
        assert_eq!(table().find("h.test", "/.well-known/pki-validation"), None);
        assert_eq!(table().find("x", "/.well-known/security.txt"), Some(1));
        assert_eq!(Routes::default().find("x", "/"), None);
    }

    #[test]
    fn deep_paths_are_cut() {
        assert_eq!(table().find("x", &"/a".repeat(500)), Some(2));
    }
}
