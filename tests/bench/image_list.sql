-- 100,000 images (%(count)s): an operator has a third, a student every 5000th, 5000 users the rest.
INSERT INTO images (id, owner_id, name, os_type, os_version, architecture, description, format, status, visibility,
  protected, tags, size_bytes, virtual_size_bytes, downloads, version, created_at, updated_at, min_disk_gib,
  min_memory_mib, provenance)
SELECT gen_random_uuid(),
  CASE WHEN i %% 3 = 0 THEN 'operator' WHEN i %% 5000 = 1 THEN 'student' ELSE 'user' || i %% 5000 END,
  os || ' ' || (10 + i %% 15) || ' ' || (ARRAY['server', 'desktop', 'lab'])[1 + i %% 3] || ' build ' || i, os, '12',
  CASE WHEN a < 0.9 THEN 'x86_64' WHEN a < 0.995 THEN 'aarch64' ELSE 'riscv64' END, 'Image ' || i || ' of the bench',
  CASE WHEN f < 0.6 THEN 'qcow2' WHEN f < 0.8 THEN 'iso' WHEN f < 0.98 THEN 'raw' ELSE 'vhd' END,
  CASE WHEN s < 0.97 THEN 'active' WHEN s < 0.99 THEN 'deactivated' ELSE 'rejected' END,
  CASE WHEN v < 0.1 THEN 'public' WHEN v < 0.2 THEN 'shared' ELSE 'private' END,
  false, '{lts,cloud}', (random() * 1e10)::bigint, (random() * 1e11)::bigint,
  CASE WHEN random() < 0.7 THEN 0 ELSE (100 / (random() + 0.001))::bigint END, 1,
  now() - i * interval '1 minute', now() - random() * i * interval '1 minute', 10, 1024, '{"kind": "multipart"}'
FROM (
  SELECT i, random() a, random() f, random() s, random() v,
    CASE WHEN i %% 1000 = 0 THEN 'Plan9'
      ELSE (ARRAY['Ubuntu', 'Ubuntu', 'Debian', 'Debian', 'Windows', 'Fedora', 'CentOS', 'FreeBSD'])[1 + i %% 8] END os
  FROM generate_series(1, %(count)s) i
) made
