"""Events as a stream: the VM's name in each, the horizon behind which they are pruned, and, on
PostgreSQL, the functions that say up to where ids are final. See docs/events.md."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The advisory locks are 7234936 ("nex") in the upper bits and an event id in the lower 40.

NEXT_ID = """
CREATE FUNCTION nexus_next_event_id() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
  -- Once a transaction: tells readers, before the first id is drawn and until the transaction ends,
  -- that ids above this one may still be on their way. Shared: nobody ever waits for it.
  IF coalesce(current_setting('nexus.draws_event_ids', true), '') = '' THEN
    PERFORM pg_advisory_xact_lock_shared((7234936::bigint << 40) | (
      SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM vm_events_id_seq));
    PERFORM set_config('nexus.draws_event_ids', 'yes', true);
  END IF;
  RETURN nextval('vm_events_id_seq');
END $$
"""

POSITION = """
CREATE FUNCTION nexus_event_position(OUT final bigint, OUT newest bigint)
LANGUAGE plpgsql AS $$
DECLARE
  drawing bigint;
BEGIN
  -- The order matters: an id that is drawn by now was announced before, so its lock is seen below
  -- unless its transaction has ended.
  SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END
    INTO newest FROM vm_events_id_seq;
  SELECT min(((classid::bigint << 32) | objid::bigint) & ((1::bigint << 40) - 1))
    INTO drawing FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND (classid::bigint >> 8) = 7234936
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database());
  final := least(newest, coalesce(drawing, newest));
END $$
"""


def upgrade() -> None:
    op.add_column(
        "vm_events", sa.Column("vm_name", sa.String(length=63), nullable=False, server_default="")
    )
    op.execute(
        "UPDATE vm_events SET vm_name = "
        "coalesce((SELECT name FROM vms WHERE vms.id = vm_events.vm_id), '')"
    )
    op.create_index("ix_vm_events_project", "vm_events", ["project", "id"])
    op.create_index("ix_vm_events_name", "vm_events", ["project", "vm_name", "id"])
    op.create_index("ix_vm_events_at", "vm_events", ["at", "id"])
    horizon = op.create_table(
        "event_horizon",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pruned_to", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_horizon")),
    )
    op.bulk_insert(horizon, [{"id": 1, "pruned_to": 0}])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(NEXT_ID)
        op.execute(POSITION)
        op.execute("ALTER TABLE vm_events ALTER COLUMN id SET DEFAULT nexus_next_event_id()")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE vm_events ALTER COLUMN id SET DEFAULT nextval('vm_events_id_seq')")
        op.execute("DROP FUNCTION nexus_event_position()")
        op.execute("DROP FUNCTION nexus_next_event_id()")
    op.drop_table("event_horizon")
    for index in ("ix_vm_events_at", "ix_vm_events_name", "ix_vm_events_project"):
        op.drop_index(index, table_name="vm_events")
    op.drop_column("vm_events", "vm_name")
