-- 100,000 stacks (%(count)s): an operator has a third, a student every 5000th, 5000 users the rest.
INSERT INTO stacks (id, owner_id, name, project, state, health, service_types, primary_app_type, variables, limits,
  services, compose, revision, latest_revision, reserved, version, created_at, updated_at)
SELECT gen_random_uuid(),
  CASE WHEN i %% 3 = 0 THEN 'operator' WHEN i %% 5000 = 1 THEN 'student' ELSE 'user' || i %% 5000 END,
  (ARRAY['shop', 'blog', 'lab', 'api', 'wiki'])[1 + i %% 5] || '-' || i, 'telar-' || i,
  CASE WHEN s < 0.7 THEN 'running' WHEN s < 0.995 THEN 'stopped' WHEN s < 0.999 THEN 'deploying' ELSE 'failed' END,
  'healthy', '{php,mariadb}', 'php', '{"MARIADB_DATABASE": "shop"}', '{"cpus": 0.5, "memory_mib": 512, "pids": 256}',
  jsonb_build_array(
    jsonb_build_object('name', 'php', 'template', 'php', 'port', 80, 'host_port', 20000 + i %% 10000, 'scheme', 'http'),
    jsonb_build_object('name', 'mariadb', 'template', 'mariadb', 'port', 3306, 'host_port', 30000 + i %% 10000)),
  repeat(E'services:\n  php:\n    image: telar/php\n', 20), 1, 1, '{"stacks": 1}', 1,
  now() - i * interval '1 minute', now() - random() * i * interval '1 minute'
FROM (SELECT i, random() s FROM generate_series(1, %(count)s) i) made
