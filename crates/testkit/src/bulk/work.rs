//! The pieces of work, and the tables that they are done on.

use super::rows::{Order, put_row};
use crate::Result;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, TryStreamExt};
use tokio_postgres::Client;

/// One piece of work.
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// the table that it fills; None if it only reads
    fills: Option<&'static str>,
    how: How,
}

enum How {
    CopyIn(Order),
    CopyOut,
    Statement(&'static str),
}

/// In this order: the later ones read what the first has left.
pub(super) const ALL: [Work; 5] = [
    Work {
        name: "copy-shuffled",
        title: "COPY FROM, keys in no order",
        fills: Some("shuffled"),
        how: How::CopyIn(Order::Shuffled),
    },
    Work {
        name: "copy-in-order",
        title: "COPY FROM, in the order of the key",
        fills: Some("ordered"),
        how: How::CopyIn(Order::Key),
    },
    Work {
        name: "copy-out",
        title: "COPY TO",
        fills: None,
        how: How::CopyOut,
    },
    Work {
        name: "insert-select-colocated",
        title: "INSERT … SELECT, on the same ranges",
        fills: Some("colocated"),
        how: How::Statement("INSERT INTO colocated SELECT * FROM ordered"),
    },
    Work {
        name: "insert-select-across",
        title: "INSERT … SELECT, onto another key",
        fills: Some("across"),
        how: How::Statement("INSERT INTO across SELECT * FROM ordered"),
    },
];

/// Makes the tables; with a number of rows they lie in three ranges of about as many rows each.
pub(super) async fn create_tables(client: &Client, sharded_rows: Option<u64>) -> Result<()> {
    if let Some(rows) = sharded_rows {
        let bounds = format!("bigint {},{}", rows / 3, rows * 2 / 3);
        client
            .batch_execute(&format!("SET pgherd.initial_bounds = '{bounds}'"))
            .await?;
    }
    for (table, key) in [
        ("shuffled", "id"),
        ("ordered", "id"),
        ("colocated", "id"),
        ("across", "other"),
    ] {
        let partition = sharded_rows.map_or(String::new(), |_| format!(" PARTITION BY RANGE ({key})"));
        client
            .batch_execute(&format!(
                "CREATE TABLE {table} (id bigint NOT NULL, other bigint NOT NULL, amount numeric(12,2), label text, \
                 at timestamp, PRIMARY KEY ({key})){partition}"
            ))
            .await?;
    }
    Ok(())
}

impl Work {
    /// Empties what it fills.
    pub(super) async fn prepare(&self, client: &Client) -> Result<()> {
        if let Some(table) = self.fills {
            client.batch_execute(&format!("TRUNCATE {table}")).await?;
        }
        Ok(())
    }

    /// Does it. Returns how many rows were moved; for COPY TO, how many bytes.
    pub(super) async fn run(&self, client: &Client, rows: u64) -> Result<u64> {
        Ok(match &self.how {
            How::CopyIn(order) => copy_in(client, self.fills.unwrap_or_default(), *order, rows).await?,
            How::Statement(sql) => client.execute(*sql, &[]).await?,
            How::CopyOut => {
                let stream = client.copy_out("COPY ordered TO STDOUT").await?;
                let bytes = stream.try_fold(0, |sum, chunk| std::future::ready(Ok(sum + chunk.len() as u64)));
                bytes.await?
            }
        })
    }

    /// What tells that the right rows were written.
    pub(super) async fn sums(&self, client: &Client) -> Result<Option<String>> {
        let Some(table) = self.fills else {
            return Ok(None);
        };
        let sql =
            format!("SELECT concat_ws(',', count(*), sum(id), sum(other * 7 + id), sum(amount), max(at)) FROM {table}");
        Ok(Some(client.query_one(&sql, &[]).await?.get(0)))
    }
}

/// COPY's buffer is sent when it has this many bytes.
const CHUNK: usize = 256 * 1024;

async fn copy_in(client: &Client, table: &str, order: Order, rows: u64) -> Result<u64> {
    let sink = client.copy_in::<_, Bytes>(&format!("COPY {table} FROM STDIN")).await?;
    let mut sink = std::pin::pin!(sink);
    let mut chunk = BytesMut::with_capacity(CHUNK + 1024);
    for place in 0..rows {
        put_row(&mut chunk, order.key(place, rows), rows);
        if chunk.len() >= CHUNK {
            sink.send(chunk.split().freeze()).await?;
            chunk.reserve(CHUNK + 1024);
        }
    }
    sink.send(chunk.freeze()).await?;
    Ok(sink.finish().await?)
}
