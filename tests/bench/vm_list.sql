-- 100,000 machines (%(count)s): an operator has a third, a student every 5000th, 5000 users the rest.
INSERT INTO vms (id, owner_id, name, os_type, template, cluster, node, vmid, state, cores, memory_mib, disk_gib,
  restart_needed, reserved, ha, addresses, version, created_at, updated_at, state_at)
SELECT gen_random_uuid(),
  CASE WHEN i %% 3 = 0 THEN 'operator' WHEN i %% 5000 = 1 THEN 'student' ELSE 'user' || i %% 5000 END,
  (ARRAY['web', 'db', 'lab', 'build', 'mail'])[1 + i %% 5] || '-' || i, os, os, 'lab', 'sv' || 1 + i %% 20, 1000 + i,
  CASE WHEN s < 0.7 THEN 'running' WHEN s < 0.995 THEN 'stopped' WHEN s < 0.999 THEN 'paused' ELSE 'error' END,
  (ARRAY[1, 2, 2, 2, 4, 8])[1 + i %% 6], (ARRAY[512, 1024, 2048, 2048, 4096])[1 + i %% 5], 4 + (random() * 60)::int,
  false, '{"vms": 1}', false, '["10.0.0.1"]', 1, now() - i * interval '1 minute',
  now() - random() * i * interval '1 minute', now()
FROM (
  SELECT i, random() s, (ARRAY['debian-13', 'ubuntu-24.04', 'alma-9'])[1 + i %% 3] os FROM generate_series(1, %(count)s) i
) made
