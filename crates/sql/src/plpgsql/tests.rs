use super::*;

fn literal(names: &[String], _at: Option<usize>) -> Found {
    match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["n"] => Found::Value("('5'::integer)".into()),
        ["r", "a"] => Found::Value("('x'::text)".into()),
        ["r"] => Found::Unusable,
        _ => Found::Nothing,
    }
}

#[test]
fn variables_stand_where_columns_may() {
    for (text, bound) in [
        ("SELECT n + 1", "SELECT ('5'::integer) + 1"),
        (
            "INSERT INTO t (n) VALUES (N)",
            "INSERT INTO t (n) VALUES (('5'::integer))",
        ),
        (
            "UPDATE t SET n = n WHERE t.n = \"n\"",
            "UPDATE t SET n = ('5'::integer) WHERE t.n = ('5'::integer)",
        ),
        ("SELECT r.a FROM n", "SELECT ('x'::text) FROM n"),
        (
            "SELECT r.a[n], t.n[2] FROM t",
            "SELECT ('x'::text)[('5'::integer)], t.n[2] FROM t",
        ),
        ("SELECT f(n => 1, x => n)", "SELECT f(n => 1, x => ('5'::integer))"),
        ("SELECT 'n', $$n$$ AS n", "SELECT 'n', $$n$$ AS n"),
        (
            "CREATE TABLE n (n int CHECK (n > 0))",
            "CREATE TABLE n (n int CHECK (n > 0))",
        ),
        ("CREATE VIEW v AS SELECT n FROM t", "CREATE VIEW v AS SELECT n FROM t"),
        (
            "SELECT k, count(*) AS n FROM t GROUP BY k ORDER BY n DESC, k + n",
            "SELECT k, count(*) AS n FROM t GROUP BY k ORDER BY n DESC, k + ('5'::integer)",
        ),
        (
            "INSERT INTO t (n) VALUES (1) ON CONFLICT (n) DO UPDATE SET n = n",
            "INSERT INTO t (n) VALUES (1) ON CONFLICT (n) DO UPDATE SET n = ('5'::integer)",
        ),
        (
            "SELECT g FROM generate_series(1, n) g LIMIT n",
            "SELECT g FROM generate_series(1, ('5'::integer)) g LIMIT ('5'::integer)",
        ),
    ] {
        assert_eq!(bind(text, &literal).map(|made| made.text).as_deref(), Ok(bound));
    }
    assert!(bind("SELECT r", &literal).is_err());
    assert!(bind("CREATE TABLE t AS SELECT n", &literal).is_err());
    assert_eq!(
        parameters("SELECT $1, '$1', $2", &["1".into(), "NULL".into()])
            .map(|made| made.text)
            .as_deref(),
        Ok("SELECT 1, '$1', NULL")
    );
    assert!(parameters("SELECT $3", &["1".into()]).is_err());
}

#[test]
fn a_block_with_all_of_it() {
    let block = parse(
        "
<<outer>>
DECLARE
    n CONSTANT int NOT NULL := 1 + (2);
    v public.t.c%TYPE;
    r t%ROWTYPE;
    s numeric(10, 2) DEFAULT 0;
BEGIN
    IF EXISTS (SELECT 1 FROM t) AND n = 1 THEN
        n := n + 1;
    ELSIF false THEN NULL;
    ELSE
        PERFORM f(n);
    END IF;
    FOR i IN REVERSE 10..1 BY 2 LOOP EXIT outer WHEN i = 3; END LOOP;
    FOR a, b IN SELECT 1, 2 LOOP CONTINUE; END LOOP;
    SELECT a, b INTO STRICT n, r.x FROM t WHERE a > 1;
    INSERT INTO t VALUES (1) RETURNING id INTO n;
    EXECUTE format('DROP %I', n) INTO v USING n, 2;
    RAISE NOTICE 'a % b', n USING HINT = 'h', ERRCODE = '22000';
    GET DIAGNOSTICS n = ROW_COUNT;
    CASE n WHEN 1, 2 THEN NULL; ELSE RETURN; END CASE;
EXCEPTION
    WHEN unique_violation OR SQLSTATE '42P01' THEN RAISE;
    WHEN others THEN NULL;
END outer",
    )
    .expect("it is understood");
    assert_eq!(block.label.as_deref(), Some("outer"));
    let kinds: Vec<_> = block.variables.iter().map(|v| &v.kind).collect();
    assert_eq!(
        kinds,
        [
            &VariableKind::Of("int".into()),
            &VariableKind::OfColumn("public.t".into(), "c".into()),
            &VariableKind::Row("t".into()),
            &VariableKind::Of("numeric(10, 2)".into()),
        ]
    );
    assert_eq!(block.variables[0].default.as_deref(), Some("1 + (2)"));
    assert_eq!(block.statements[0].line, 9);
    let actions: Vec<_> = block.statements.iter().map(|s| &s.action).collect();
    let Action::If(branches, otherwise) = actions[0] else {
        panic!("{:?}", actions[0])
    };
    assert_eq!(branches[0].0, "EXISTS (SELECT 1 FROM t) AND n = 1");
    assert_eq!((branches.len(), otherwise.len()), (2, 1));
    let Action::Sql(text, Some(into)) = actions[3] else {
        panic!("{:?}", actions[3])
    };
    assert_eq!(text, "SELECT a, b                    FROM t WHERE a > 1");
    assert_eq!(
        *into,
        Into {
            strict: true,
            targets: vec![vec!["n".into()], vec!["r".into(), "x".into()]],
        }
    );
    assert!(matches!(actions[4], Action::Sql(text, Some(_)) if text == "INSERT INTO t VALUES (1) RETURNING id"));
    assert!(matches!(actions[5], Action::Execute { using, .. } if using.len() == 2));
    assert_eq!(block.handlers.len(), 2);
    assert_eq!(block.handlers[0].conditions[1], Condition::Code("42P01".into()));
}

#[test]
fn elements_are_targets() {
    let block = parse("BEGIN a[i + f(1, b[2])][:3] := '{x:y}'; END").expect("elements");
    let part = vec![
        Subscript::At("i + f(1, b[2])".into()),
        Subscript::Slice(None, Some("3".into())),
    ];
    assert_eq!(
        block.statements[0].action,
        Action::AssignPart(vec!["a".into()], part, "'{x:y}'".into())
    );
}

#[test]
fn transactions_end() {
    let block = parse("BEGIN COMMIT; ROLLBACK AND CHAIN; COMMIT AND NO CHAIN; END").expect("ends");
    let ends = [(true, false), (false, true), (true, false)];
    let ends = ends.map(|(commits, chain)| Action::End { commits, chain });
    let actions: Vec<_> = block.statements.into_iter().map(|s| s.action).collect();
    assert_eq!(actions, ends);
}

#[test]
fn rows_are_lists_of_their_columns() {
    let row = |names: &[String], _| match names {
        [r, star] if r == "r" && star == "*" => Found::Value("1, 2".into()),
        [r] if r == "r" => Found::Value("ROW(1, 2)".into()),
        _ => Found::Nothing,
    };
    for (text, bound) in [
        (
            "INSERT INTO t VALUES (r.*), (r.*)",
            "INSERT INTO t VALUES (1, 2), (1, 2)",
        ),
        ("SELECT r.*, f(s.a) FROM s", "SELECT 1, 2, f(s.a) FROM s"),
        ("SELECT f(r) FROM s", "SELECT f(ROW(1, 2)) FROM s"),
        (
            "SELECT a, s.* FROM s WHERE ROW(r.*) = s",
            "SELECT a, s.* FROM s WHERE ROW(1, 2) = s",
        ),
    ] {
        assert_eq!(bind(text, &row).map(|b| b.text).as_deref(), Ok(bound), "{text}");
    }
    // Which one is meant is not known.
    assert!(bind("SELECT r.* FROM r", &row).is_err());
    assert!(bind("SELECT count(r.*) FROM s", &row).is_err());
}

#[test]
fn what_is_not_run_is_named() {
    for (body, told) in [
        ("BEGIN SAVEPOINT s; END", "\"SAVEPOINT\" in line 1 is not understood."),
        (
            "BEGIN COMMIT WORK; END",
            "There is \"WORK\" in line 1 where \";\" is expected.",
        ),
        (
            "DECLARE c CURSOR FOR SELECT 1; BEGIN END",
            "\"CURSOR\" in line 1 is not understood.",
        ),
        (
            "BEGIN\n a[1].x := 2; END",
            "There is \".\" in line 2 where \":=\" is expected.",
        ),
        ("BEGIN SELECT 1 END", "Its last statement has no end."),
        ("BEGIN IF a THEN NULL; END", "It ends where \"if\" is expected."),
    ] {
        let error = parse(body).expect_err(body);
        assert_eq!(error.0, told, "{body}");
    }
}

#[test]
fn schema_changes_are_seen() {
    assert!(changes_schema("BEGIN CREATE TYPE t AS ENUM (); END"));
    assert!(changes_schema("BEGIN EXECUTE x; END"));
    assert!(!changes_schema("BEGIN PERFORM 'create'; END"));
}
