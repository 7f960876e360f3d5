//! Texts that PostgreSQL would only show after waiting for somebody's open transaction.
//!
//! PostgreSQL locks the relations that a view, a rule or an SQL-standard function body names before it shows the text. A client may
//! keep a schema change open for as long as it likes, and the catalog must not wait for it: a gateway that waited would lose its
//! lease. `pgherd.snapshot()` leaves such texts out, and the gateway takes those that it has read before: what is not committed
//! changes nothing in them. A version from the rows that make up a text says whether it still is that one.

use super::Document;
use super::reach::View;
use std::collections::HashMap;

/// In a body, it may mean any sharded table.
const ANYTHING: &str = "pgherd_data";

/// What a gateway has read of views, rules and functions, by what they are, with the version.
#[derive(Debug, Clone, Default)]
pub(crate) struct Remembered {
    views: HashMap<u32, (String, View)>,
    /// by the rule's table and its name
    rules: HashMap<(u32, String), (String, String)>,
    functions: HashMap<u32, (String, String, bool)>,
}

impl Remembered {
    /// Puts in what `document` lacks, and remembers what it has. A text that was never read, as when a gateway starts meanwhile, is taken for
    /// one that may reach anything, and the document is incomplete.
    pub(super) fn complete(&mut self, document: &mut Document) {
        let mut incomplete = false;
        for view in document.views.iter_mut().filter(|v| v.held) {
            let known = self.views.get(&view.oid);
            match known.filter(|(version, _)| *version == view.version) {
                Some((_, known)) => view.take_text(known),
                None => incomplete = true,
            }
        }
        for rule in document.rules.iter_mut().filter(|r| r.body.is_none()) {
            let known = self.rules.get(&(rule.oid, rule.name.clone()));
            let known = known.filter(|(version, _)| *version == rule.version);
            incomplete |= known.is_none();
            rule.body = Some(known.map_or(ANYTHING.to_owned(), |(_, body)| body.clone()));
        }
        for function in document.functions.iter_mut().filter(|f| f.body.is_none()) {
            let known = self.functions.get(&function.oid);
            let known = known.filter(|(version, ..)| Some(version) == function.version.as_ref());
            incomplete |= known.is_none();
            let (body, local) = known.map_or((ANYTHING.to_owned(), true), |(_, body, local)| (body.clone(), *local));
            function.body = Some(body);
            function.local = local;
        }
        document.incomplete = incomplete;
        if !incomplete {
            self.remember(document);
        }
    }

    fn remember(&mut self, document: &Document) {
        let views = document.views.iter().map(|v| (v.oid, (v.version.clone(), v.clone())));
        self.views = views.collect();
        let rules = document.rules.iter();
        self.rules = rules
            .filter_map(|r| Some(((r.oid, r.name.clone()), (r.version.clone(), r.body.clone()?))))
            .collect();
        // Only bodies that are parsed have a version; the others are text that needs no lock.
        let functions = document.functions.iter();
        self.functions = functions
            .filter_map(|f| Some((f.oid, (f.version.clone()?, f.body.clone()?, f.local))))
            .collect();
    }
}
