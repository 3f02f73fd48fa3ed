# shellcheck shell=sh disable=SC2164 # it is run by sh -eu, which ends at what fails
# Installs the dependencies of the code in /code, runs its build script if it has one, and leaves the application in
# /var/tmp/app. Runs again at every start of the stack: what has not changed is left alone.
code=/code
[ ! -f "/code/$APP/package.json" ] || code=/code/$APP
cd "$code"
[ -f package.json ] || { echo "There is no package.json in the code"; exit 1; }
state=$({ node --version; find . -type f -exec sha256sum {} +; } | sort | sha256sum)
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
if node -e 'process.exit(require("./package.json").scripts?.build ? 0 : 1)'; then
    npm "$install" --include=dev
    npm run build
    npm prune --omit=dev
else
    npm "$install" --omit=dev
fi

# Put into place by renaming: the application is there whole or not at all.
cd /var/tmp
rm -f state
[ ! -d app ] || mv app old
mv next app
echo "$state" >state
rm -rf old
echo "The application is built"
