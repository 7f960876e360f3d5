use super::{analyzed, fixture::snapshot};
use crate::{Route, map_position};

/// The second shard's part.
fn noted(sql: &str) -> (crate::Part, String) {
    let snapshot = snapshot();
    let analysis = analyzed(sql, &snapshot);
    let Route::Scatter { parts, .. } = analysis.route(&snapshot, &[]) else {
        panic!("{sql}");
    };
    let part = analysis.noting(&parts[1]).expect(sql);
    let text = part.text.to_string();
    (part, text)
}

#[test]
fn the_condition_gets_a_call_beside_it() {
    for (sql, expected) in [
        (
            "delete from two",
            "delete from \"pgherd_data\".\"t10_r3\" AS \"two\" WHERE #",
        ),
        (
            "delete from t where k > 4",
            "delete from \"pgherd_data\".\"t1_r3\" AS \"t\" where (k > 4) AND #",
        ),
        (
            "update t set v = 'where' where v = 'a' or k > 4 -- ;\n returning k as where, v returning_",
            "update \"pgherd_data\".\"t1_r2\" AS \"t\" set v = 'where' where (v = 'a' or k > 4) AND # -- ;\n returning k as where, v returning_",
        ),
        (
            "update t x set v = 'y' returning *",
            "update \"pgherd_data\".\"t1_r2\" x set v = 'y' WHERE # returning *",
        ),
        (
            "insert into t select k, w from u",
            "insert into t select k, w from \"pgherd_data\".\"t2_r2\" AS \"u\" WHERE #",
        ),
        (
            "merge into t using u on t.k = u.k when matched then update set v = w",
            "merge into t using (SELECT * FROM \"pgherd_data\".\"t2_r2\" AS \"u\" WHERE #) AS \"u\" on t.k = u.k \
             when matched then update set v = w",
        ),
        (
            "insert into t select k, w from u where m > 3 on conflict (k) do update set v = 'x' where t.n = 1 returning *",
            "insert into t select k, w from \"pgherd_data\".\"t2_r2\" AS \"u\" where (m > 3) AND # on conflict (k) do update set v = 'x' where t.n = 1 returning *",
        ),
    ] {
        let expected = expected.replace('#', "(SELECT pgherd.note_markers())");
        assert_eq!(noted(sql).1, expected);
    }
}

#[test]
fn positions_are_the_clients() {
    let sql = "update t set v = 'ö' || nosuch where ä > 4 and nix returning wrong";
    let (part, text) = noted(sql);
    for word in ["nosuch", "ä >", "nix", "wrong"] {
        let position = |text: &str| text[..text.find(word).unwrap()].chars().count() as u32 + 1;
        assert_eq!(map_position(&part, position(&text)), position(sql), "{word}");
    }
}
