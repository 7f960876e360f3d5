use super::{check, check_places, place, text};

#[test]
fn one_range() {
    check(&[
        (
            "update t set v = 'x' where k = 5",
            r#"2: update "pgherd_data"."t1_r2" AS "t" set v = 'x' where k = 5"#,
        ),
        (
            "update t x set v = 'x' where x.k = 5",
            r#"2: update "pgherd_data"."t1_r2" x set v = 'x' where x.k = 5"#,
        ),
        (
            "delete from t where k = 5 returning t.*",
            r#"2: delete from "pgherd_data"."t1_r2" AS "t" where k = 5 returning t.*"#,
        ),
        (
            "delete from t as x where k = 5",
            r#"2: delete from "pgherd_data"."t1_r2" as x where k = 5"#,
        ),
        (
            "delete from t where k = 5 returning t",
            "2: delete from t where k = 5 returning t [fence_1_5]",
        ),
        (
            "update t set v = (select 'a') where k = 5",
            r#"2: update "pgherd_data"."t1_r2" AS "t" set v = (select 'a') where k = 5"#,
        ),
        ("delete from p1", "2: delete from p1"),
    ]);
}

#[test]
fn views_with_stand_ins_are_named_where_the_rows_are() {
    check(&[
        (
            "update sv set v = 'x' where kk = 5",
            "2: update sv set v = 'x' where kk = 5 [fence_1_5]",
        ),
        (
            "delete from sv where kk = 8 returning v",
            "3: delete from sv where kk = 8 returning v [fence_1_5]",
        ),
        (
            "select v from sv where kk = 1",
            "1: select v from sv where kk = 1 [fence_1_5]",
        ),
        (
            "insert into sv values (5, 'x')",
            "2: insert into sv values (5, 'x') [fence_1_5]",
        ),
        ("update sums set k = 1", "1: update sums set k = 1"),
        (
            "merge into sv using loc on kk = loc.x when matched then delete",
            "1: merge into sv using loc on kk = loc.x when matched then delete",
        ),
        (
            "insert into sv_closed values (5, 'x')",
            "refuse: rows cannot be inserted through view \"sv_closed\" yet",
        ),
    ]);
    check_places(&[
        ("update sv set v = 'x'", "1 fenced,2 fenced,3 fenced"),
        ("insert into sv values (1, 'x'), (5, 'y')", "1 fenced,2 fenced"),
        ("select * from sv", "plan"),
        ("update sv set kk = 9 where kk = 1", "gather write"),
    ]);
}

#[test]
fn several_shards() {
    check(&[(
        "update t set v = 'x' where k > 4",
        "2: update \"pgherd_data\".\"t1_r2\" AS \"t\" set v = 'x' where k > 4\n\
         3: update \"pgherd_data\".\"t1_r3\" AS \"t\" set v = 'x' where k > 4",
    )]);
    check_places(&[
        ("update two set v = 'x'", "1 fenced,2"),
        ("delete from two where k > 5", "1,2"),
        ("update loose set v = 'x' where k > 3", "2 fenced,3 fenced"),
        ("delete from t where v = (select 'x')", "gather write"),
        ("delete from t where v in (select w from u)", "gather write"),
        ("update t set v = (select x from loc) where k = 5", "gather write"),
        ("update t set v = (select x from loc) where k = 1", "1"),
        ("update t set n = nextval('s') where k > 1", "gather write"),
        ("delete from t where k in (null)", "1 fenced"),
    ]);
}

#[test]
fn joined_writes() {
    check_places(&[
        ("update t set v = u.w from u where t.k = u.k and t.k = 5", "2"),
        ("update t set v = u.w from u where t.k = u.k", "gather write"),
        ("delete from t using u where t.k = u.k and u.k = 8", "3"),
        ("delete from t using loc where t.k = 1", "1"),
        ("delete from t using loc where t.k = 5", "gather write"),
        ("with x as (delete from t where k = 5 returning *) select * from x", "2"),
        ("with x as (delete from t returning *) select * from x", "refuse"),
        ("with x as (insert into t values (5)) select 1", "refuse"),
        (
            "with x as (update t set v = 1 where k = 5) delete from u where k = 6",
            "2",
        ),
        (
            "with x as (select * from u) delete from t using x where t.v = x.w",
            "gather write",
        ),
        ("update loc set x = u.w from u where loc.id = u.k", "gather write"),
        ("update p1 set v = u.w from u", "gather write"),
        (
            "with x as (insert into u values (5)) update t set v = (select 'x')",
            "refuse",
        ),
        (
            "merge into t using u on t.k = u.k when matched then delete",
            "1 fenced,2 fenced,3 fenced",
        ),
        (
            "merge into t using u s on s.k = t.k and t.v <> s.w when matched and m = 2 then update set v = s.w \
             when not matched then insert (v, k) values (w, k)",
            "1 fenced,2 fenced,3 fenced",
        ),
        (
            "merge into t using u on t.k = u.k when not matched then insert (k) values (u.k + 1)",
            "gather write",
        ),
        (
            "merge into t using u on t.k = u.k when matched then update set k = 3",
            "gather write",
        ),
        (
            "merge into t using u on t.k = u.m when matched then delete",
            "gather write",
        ),
        (
            "merge into t using u on t.k = u.k or t.k = 3 when matched then delete",
            "gather write",
        ),
        (
            "merge into t using loc on t.k = loc.id when matched then delete",
            "gather write",
        ),
        (
            "merge into t using u on t.k = u.k when matched and exists (select from u) then delete",
            "gather write",
        ),
        (
            "merge into t using (select * from u) u on t.k = u.k when matched then delete",
            "gather write",
        ),
        (
            "merge into ident using u on ident.k = u.k when not matched then insert (k, v) values (u.k, u.w)",
            "gather write",
        ),
    ]);
}

#[test]
fn updating_the_key() {
    check_places(&[
        ("update t set v[1] = 'x', v[2][n] = array[1] where k = 5", "2"),
        ("update t set v = 'y', k[1] = 8 where k = 5", "gather write"),
        ("update t set k = 5 where k = 5", "2 fenced"),
        ("update t set k = 6 where k = 5", "2 fenced"),
        ("update t set k = 8 where k = 5", "gather write"),
        ("update t set k = k + 1 where k = 5", "gather write"),
        ("update t set k = k where k = 5", "2"),
        ("update t set k = t.k, v = 'x' where k = 5", "2"),
        ("update t set (k, v) = (6, 'x') where k = 5", "2 fenced"),
        ("update t set (k, v) = (select 6, 'x') where k = 5", "gather write"),
        ("update t set k = 8 where k = null", "1 fenced"),
        ("update t set k = 8", "gather write"),
        ("update c set a = 4 where a = 5 and b = 'x'", "2 fenced"),
        ("update c set a = 4 where a = 5", "gather write"),
        ("update c set b = 'y' where a = 5 and b = 'x'", "2 fenced"),
        ("update p1 set k = k + 1", "2"),
        ("update two set k = k + 1 where k < 3", "gather write"),
    ]);
    assert_eq!(
        place("update t set k = $1 where k = $2", &[text("6"), text("5")]),
        "2 fenced"
    );
    assert_eq!(
        place("update t set k = $1 where k = $2", &[text("9"), text("5")]),
        "gather write"
    );
}

#[test]
fn insert_select() {
    check_places(&[
        // Rows stay where they are when the key is taken over between colocated tables.
        ("insert into t select * from u", "1 fenced,2 fenced,3 fenced"),
        ("insert into t select * from u where k > 4", "2 fenced,3 fenced"),
        (
            "insert into t (v, k) select x.w || 'x', x.k from u x where m = 2",
            "1 fenced,2 fenced,3 fenced",
        ),
        (
            "insert into t select k, v, n from t where n > 1 on conflict do nothing",
            "1 fenced,2 fenced,3 fenced",
        ),
        ("insert into t (v) select w from u", "plan"),
        ("insert into t select k + 1, w from u", "plan"),
        ("insert into t select m, w from u", "plan"),
        ("insert into two select k, w from u", "plan"),
        ("insert into t select k, w from u limit 3", "plan"),
        ("insert into t select distinct k, w from u", "plan"),
        ("insert into t select k, max(w) from u group by k", "plan"),
        ("insert into t select k, 'x', row_number() over () from u", "plan"),
        ("insert into t select u.k, w from u, loc", "plan"),
        ("insert into t select k, w from u where exists (select from u)", "plan"),
        ("insert into t (select k, w from u)", "plan"),
        ("insert into t select k, w from u union all select k, w from u", "plan"),
        ("with x as (select 1) insert into t select k, w from u", "plan"),
        // What a sequence or the transaction's time would fill in must be given.
        ("insert into seq (v) select w from u", "plan"),
        ("insert into seq select k, w from u", "1 fenced,2 fenced,3 fenced"),
        (
            "insert into seq select k, w from u on conflict (id) do update set v = default",
            "plan",
        ),
        ("insert into ident (k, v) select k, w from u", "plan"),
        ("insert into born (k, v) select k, w from u", "plan"),
        (
            "insert into born (k, at) select k, null from u",
            "1 fenced,2 fenced,3 fenced",
        ),
        ("insert into t (k, v) select k, w from u where k = 5", "2 fenced"),
        ("insert into t (k, v) select 5, w from u where k = 5", "2 fenced"),
        ("insert into t (k, v) select m, w from u where k = 5", "plan"),
        ("insert into t (k, v) select 1, w from u where k = 5", "plan"),
        ("insert into t (k, v) select 5, 'x'", "2 fenced"),
        ("insert into t select g from generate_series(1, 9) g", "plan"),
        ("insert into t (k) select id from loc", "plan"),
        ("insert into seq (v) select w from u where k = 5", "plan"),
        ("insert into loc select * from t", "plan"),
        ("insert into loc select * from t where k = 1", "1"),
        ("insert into loc select * from t where k = 5", "plan"),
        ("insert into loc select 1", "1"),
        ("with x as (select 5 as k) insert into t select k from x", "plan"),
    ]);
}
