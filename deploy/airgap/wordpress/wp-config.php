<?php
/** WordPress's settings, read from the container's environment at each request (WORDPRESS_…, or …_FILE). */

function telar_setting(string $name, string $default = ''): string
{
    $file = getenv("{$name}_FILE");
    if ($file !== false && $file !== '') {
        return rtrim((string) file_get_contents($file), "\r\n");
    }
    $value = getenv($name);
    return $value === false ? $default : $value;
}

define('DB_HOST', telar_setting('WORDPRESS_DB_HOST', 'mysql'));
define('DB_NAME', telar_setting('WORDPRESS_DB_NAME', 'wordpress'));
define('DB_USER', telar_setting('WORDPRESS_DB_USER', 'wordpress'));
define('DB_PASSWORD', telar_setting('WORDPRESS_DB_PASSWORD'));
define('DB_CHARSET', 'utf8mb4');
define('DB_COLLATE', '');
$table_prefix = telar_setting('WORDPRESS_TABLE_PREFIX', 'wp_');

define('AUTH_KEY', telar_setting('WORDPRESS_AUTH_KEY', 'put-your-unique-phrase-here'));
define('SECURE_AUTH_KEY', telar_setting('WORDPRESS_SECURE_AUTH_KEY', 'put-your-unique-phrase-here'));
define('LOGGED_IN_KEY', telar_setting('WORDPRESS_LOGGED_IN_KEY', 'put-your-unique-phrase-here'));
define('NONCE_KEY', telar_setting('WORDPRESS_NONCE_KEY', 'put-your-unique-phrase-here'));
define('AUTH_SALT', telar_setting('WORDPRESS_AUTH_SALT', 'put-your-unique-phrase-here'));
define('SECURE_AUTH_SALT', telar_setting('WORDPRESS_SECURE_AUTH_SALT', 'put-your-unique-phrase-here'));
define('LOGGED_IN_SALT', telar_setting('WORDPRESS_LOGGED_IN_SALT', 'put-your-unique-phrase-here'));
define('NONCE_SALT', telar_setting('WORDPRESS_NONCE_SALT', 'put-your-unique-phrase-here'));

define('WP_DEBUG', (bool) telar_setting('WORDPRESS_DEBUG'));
// The image brings WordPress's updates; plugins and themes are updated from within.
define('WP_AUTO_UPDATE_CORE', false);

// Behind a proxy that ends TLS, links must stay https.
if (str_contains($_SERVER['HTTP_X_FORWARDED_PROTO'] ?? '', 'https')) {
    $_SERVER['HTTPS'] = 'on';
}

// The official image's way to add settings; it is the operator's own code.
eval(telar_setting('WORDPRESS_CONFIG_EXTRA'));

if (!defined('ABSPATH')) {
    define('ABSPATH', __DIR__ . '/');
}
require_once ABSPATH . 'wp-settings.php';
