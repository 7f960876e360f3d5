//! Whether a trigger function's body may change a column of the row that it is about.

use crate::lexer::{Reader, tokenize};

/// Whether a body in PL/pgSQL may give one of these columns of NEW another value: by its name, with NEW as a whole, or by returning another
/// row. What cannot be read may.
pub fn may_assign_new(body: &str, columns: &[&str]) -> bool {
    let Ok(tokens) = tokenize(body) else { return true };
    let body = Reader {
        text: body,
        tokens: &tokens,
    };
    (0..tokens.len()).any(|at| body.assigns(at, columns) || body.returns_another(at))
}

impl Reader<'_> {
    /// Whether NEW, or one of its columns, stands here as what is assigned to.
    fn assigns(&self, at: usize, columns: &[&str]) -> bool {
        if !self.is_word(at, "new") {
            return false;
        }
        let mut behind = at + 1;
        if self.is(behind, ".") {
            let column = self.tokens.get(at + 2).and_then(|t| t.identifier(self.text));
            if !column.is_some_and(|column| columns.contains(&column.as_str())) {
                return false;
            }
            behind = at + 3;
        }
        let begins = at == 0
            || self.is(at - 1, ";")
            || ["begin", "then", "else", "loop"]
                .iter()
                .any(|word| self.is_word(at - 1, word));
        // `NEW.a[1] := …` is an assignment as well.
        let assigned = begins && (self.is(behind, ":=") || self.is(behind, "=") || self.is(behind, "["));
        assigned || self.is_target_of_into(at)
    }

    /// Whether it stands in the list behind INTO.
    fn is_target_of_into(&self, at: usize) -> bool {
        let in_list = |i: &usize| {
            let token = &self.tokens[*i];
            // `INSERT INTO log SELECT NEW.id` reads it.
            !token.is_word(self.text, "select")
                && (token.is(self.text, ".") || token.is(self.text, ",") || token.identifier(self.text).is_some())
        };
        let mut before = (0..at).rev().take_while(in_list);
        before.any(|i| self.is_word(i, "into"))
    }

    /// Whether it returns something else than NEW, OLD or NULL.
    fn returns_another(&self, at: usize) -> bool {
        let known = ["new", "old", "null"].iter().any(|word| self.is_word(at + 1, word));
        self.is_word(at, "return") && !self.is(at + 1, ";") && !(known && self.is(at + 2, ";"))
    }
}

#[cfg(test)]
mod tests {
    use super::may_assign_new;

    #[test]
    fn assignments_to_the_key_are_found() {
        let assigns = |body: &str| may_assign_new(body, &["id", "Key"]);
        for body in [
            "BEGIN NEW.id := 5; RETURN NEW; END",
            "BEGIN IF NEW.id IS NULL THEN new . ID = 5; END IF; RETURN NEW; END",
            "BEGIN new.\"Key\" := 1; RETURN NEW; END",
            "BEGIN SELECT max(a), 2 INTO STRICT NEW.x, NEW.id FROM t; RETURN NEW; END",
            "BEGIN NEW := row(1, 2); RETURN NEW; END",
            "BEGIN SELECT * INTO NEW FROM t; RETURN NEW; END",
            "DECLARE r t; BEGIN r := NEW; r.id := 1; RETURN r; END",
            "BEGIN RETURN jsonb_populate_record(NEW, '{}'); END",
            "BEGIN new.id[1] := 1; RETURN NEW; END",
            "BEGIN IF true THEN new.id = NEW.id + 1; END IF; RETURN NEW; END",
            "BEGIN SELECT max(id) INTO NEW.id FROM t; RETURN NEW; END",
            "BEGIN NEW := OLD; RETURN NEW; END",
            "'open",
        ] {
            assert!(assigns(body), "{body}");
        }
        for body in [
            "BEGIN NEW.v := NEW.id; RETURN NEW; END",
            "BEGIN IF NEW.id = 5 THEN RETURN NULL; END IF; NEW.changed = now(); RETURN NEW; END",
            "BEGIN IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END",
            "BEGIN INSERT INTO log SELECT NEW.id, NEW.key; RETURN NEW; END",
            "BEGIN SELECT NEW.id INTO NEW.v; RETURN NEW; END",
            "BEGIN NEW.v := 1; RETURN NEW; END",
            "BEGIN IF NEW.id = 1 THEN NEW.v := NEW.id; END IF; RETURN NEW; END",
            "BEGIN INSERT INTO log VALUES (NEW.id); RETURN NEW; END",
        ] {
            assert!(!assigns(body), "{body}");
        }
    }
}
