# shellcheck shell=sh disable=SC2164 # it is run by sh -eu, which ends at what fails
# Builds the front end in /code and leaves its files in /var/tmp/site. Runs again at every start of the stack: what has
# not changed is left alone.
code=/code
[ ! -f "/code/$APP/package.json" ] || code=/code/$APP
cd "$code"
[ -f package.json ] || { echo "There is no package.json in the code"; exit 1; }
# shellcheck disable=SC2153 # the environment names the folder that is looked for
state=$({ node --version; echo "$OUTPUT"; find . -type f -exec sha256sum {} +; } | sort | sha256sum)
if [ "$state" = "$(cat /var/tmp/state 2>/dev/null)" ]; then
    echo "The code has not changed since it was built"
    exit 0
fi

rm -rf /var/tmp/next /var/tmp/old
mkdir /var/tmp/next
cp -R . /var/tmp/next
cd /var/tmp/next
rm -rf node_modules
install=install
[ ! -f package-lock.json ] || install=ci
npm "$install" --include=dev
npm run build

output=
for folder in $OUTPUT dist build out; do
    if [ -f "$folder/index.html" ]; then
        output=$folder
        break
    fi
done
[ -n "$output" ] || { echo "The build left no index.html in ${OUTPUT:-dist, build or out}"; exit 1; }

# Put into place by renaming: the site is there whole or not at all.
rm -f /var/tmp/state
[ ! -d /var/tmp/site ] || mv /var/tmp/site /var/tmp/old
mv "$output" /var/tmp/site
echo "$state" >/var/tmp/state
cd /
rm -rf /var/tmp/next /var/tmp/old
echo "The site is built from $output"
