//! How a locking clause locks rows: `FOR UPDATE` and its kin, found by their words.

use crate::lexer::Token;

/// Of several clauses for one relation the strongest holds, as in PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockStrength {
    /// FOR KEY SHARE
    KeyShare,
    /// FOR SHARE
    Share,
    /// FOR NO KEY UPDATE
    NoKeyUpdate,
    /// FOR UPDATE
    Update,
}

const ALL: [LockStrength; 4] = [
    LockStrength::KeyShare,
    LockStrength::Share,
    LockStrength::NoKeyUpdate,
    LockStrength::Update,
];

impl LockStrength {
    /// The key words that a clause begins with.
    pub fn sql(self) -> &'static str {
        match self {
            Self::KeyShare => "FOR KEY SHARE",
            Self::Share => "FOR SHARE",
            Self::NoKeyUpdate => "FOR NO KEY UPDATE",
            Self::Update => "FOR UPDATE",
        }
    }

    /// How many words that are.
    pub fn words(self) -> usize {
        self.sql().split(' ').count()
    }

    /// The strength of the clause that begins at a token, if one does.
    pub fn at(text: &str, tokens: &[Token], at: usize) -> Option<Self> {
        let is = |strength: &Self| {
            let mut words = strength.sql().split(' ').enumerate();
            words.all(|(n, word)| tokens.get(at + n).is_some_and(|t| t.is_word(text, word)))
        };
        ALL.into_iter().find(is)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clauses_begin_with_their_words() {
        let text = "select a from t for no key update of t for key share for share for update for key update";
        let tokens = crate::lexer::tokenize(text).unwrap();
        let found = (0..tokens.len()).filter_map(|at| LockStrength::at(text, &tokens, at));
        use LockStrength::{KeyShare, NoKeyUpdate, Share, Update};
        assert_eq!(found.collect::<Vec<_>>(), [NoKeyUpdate, KeyShare, Share, Update]);
        assert_eq!((Update.words(), NoKeyUpdate.words()), (2, 4));
        assert!(Update > NoKeyUpdate && NoKeyUpdate > Share && Share > KeyShare);
    }
}
